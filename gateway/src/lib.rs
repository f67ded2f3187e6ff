//! The model path outside the actors: OpenAI wire forms (`openai`) and calls to upstreams (`upstream`).
//!
//! Invariants: a request is checked in full before anything else sees it, and what is sent upstream is what was
//! checked; no error text for clients holds an upstream's address or key; every wait and every buffer has a limit.
//! Deliberately absent: admission, money and routing (tenant actor), the HTTP and gRPC servers (`server`), retries
//! and hedging (a decision of the caller, who knows the reservation).

pub mod openai;
pub mod upstream;
