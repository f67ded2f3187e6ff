//! Runs the pure deciders as actix actors over the log.
