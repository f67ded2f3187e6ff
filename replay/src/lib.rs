//! Operators look at the past: episodes and state at any version. Reads only.
