//! What is put right however a request's task ends, also when it panics.

use prometheus::{IntCounter, IntGauge};

/// One more in a gauge for as long as it lives.
#[derive(Debug)]
pub(super) struct InFlight(IntGauge);

impl InFlight {
    pub(super) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts a panic of the task that it lives in.
#[derive(Debug)]
pub(super) struct CountsPanic(pub(super) IntCounter);

impl Drop for CountsPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::metrics::Metrics;

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_counted_and_no_longer_in_flight() {
        let metrics = Metrics::new().unwrap();
        for (panics, counted) in [(false, 0), (true, 1)] {
            let (gauge, counter) = (metrics.model_in_flight.clone(), metrics.panics.clone());
            let mut tasks = tokio::task::JoinSet::new();
            tasks.spawn(async move {
                let _panics = CountsPanic(counter);
                let _in_flight = InFlight::new(&gauge);
                tokio::task::yield_now().await;
                assert!(gauge.get() == 1 && !panics, "on purpose");
            });
            assert_eq!(tasks.join_next().await.unwrap().is_err(), panics);
            assert_eq!((metrics.model_in_flight.get(), metrics.panics.get()), (0, counted));
        }
    }
}
