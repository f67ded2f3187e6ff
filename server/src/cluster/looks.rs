//! One look where the log ends, for all who wait for it.
//!
//! Invariants: one look goes on and one waits for its end, no more, however many ask; whoever asks is answered by a look
//! that began after they asked. A look that nobody waits for any more ends.

use std::{fmt, sync::Arc};

use futures::{
    FutureExt as _,
    future::{BoxFuture, WeakShared},
};
use parking_lot::Mutex;

type Look = BoxFuture<'static, bool>;

/// Looks that those who ask share.
pub(super) struct Looks(Arc<Inner>);

struct Inner {
    look: Box<dyn Fn() -> Look + Send + Sync>,
    /// Held by the look that goes on.
    turn: tokio::sync::Mutex<()>,
    /// The one that has not begun.
    next: Mutex<Option<WeakShared<Look>>>,
}

impl fmt::Debug for Looks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Looks").finish_non_exhaustive()
    }
}

impl Looks {
    /// Looks in this way.
    pub(super) fn new(look: impl Fn() -> Look + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { look: Box::new(look), turn: tokio::sync::Mutex::default(), next: Mutex::default() }))
    }

    /// What a look that begins from now on says.
    pub(super) async fn look(&self) -> bool {
        let look = {
            let mut next = self.0.next.lock();
            let waiting = next.as_ref().and_then(WeakShared::upgrade);
            let look = waiting.unwrap_or_else(|| Arc::clone(&self.0).begin().boxed().shared());
            *next = look.downgrade();
            look
        };
        look.await
    }
}

impl Inner {
    async fn begin(self: Arc<Self>) -> bool {
        let _turn = self.turn.lock().await;
        // Whoever comes from here on may ask for what this look does not see.
        self.next.lock().take();
        (self.look)().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;
    use tokio::{sync::Semaphore, task::yield_now};
    use tokio_util::task::TaskTracker;

    use super::*;

    #[tokio::test]
    async fn all_who_ask_while_a_look_goes_on_share_the_next_one() {
        let (begun, leave) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let looks = Arc::new(Looks::new({
            let (begun, leave) = (Arc::clone(&begun), Arc::clone(&leave));
            move || {
                begun.fetch_add(1, Ordering::SeqCst);
                let leave = Arc::clone(&leave);
                async move { leave.acquire().await.map(|permit| permit.forget()).is_ok() }.boxed()
            }
        }));
        let tasks = TaskTracker::new();
        let ask = || {
            let looks = Arc::clone(&looks);
            tasks.spawn(async move { looks.look().await })
        };
        let first = ask();
        while begun.load(Ordering::SeqCst) == 0 {
            yield_now().await;
        }
        let others = join_all((0..100).map(|_| ask()));
        for _ in 0..200 {
            yield_now().await;
        }
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        leave.add_permits(2);
        assert!(first.await.unwrap());
        assert!(others.await.into_iter().all(|seen| seen.unwrap()));
        assert_eq!(begun.load(Ordering::SeqCst), 2);
        // One that is given up makes room.
        let given_up = ask();
        while begun.load(Ordering::SeqCst) == 2 {
            yield_now().await;
        }
        given_up.abort();
        drop(given_up.await);
        leave.add_permits(1);
        assert!(looks.look().await);
    }
}
