//! Read models: pure folds over the log and the runner that keeps their checkpoints.
