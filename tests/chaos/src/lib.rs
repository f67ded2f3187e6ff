//! Seeded faults over the whole system: crashes, power loss, full disks, dead clients.
//!
//! A test here runs a real program (`chaos-child`), does something terrible to it, and compares what it had been told
//! with what is there afterwards. `CHAOS_SEED` repeats the choices of a run; the moment a signal arrives cannot be
//! repeated to the instruction, which is why there are many rounds (`CHAOS_ROUNDS`).
//!
//! - `dice`: the seed and the choices that come from it;
//! - `checkers`: what was acknowledged, and whether a log keeps it;
//! - `child` and `victim`: the program that suffers, and the hand that holds it;
//! - `shim`: the libraries that record what a power loss leaves, inject faults of the disk and set the clock;
//! - `crash`, `power`, `faults`: the rounds;
//! - `system`, `clients`, `money`: the shipped binary under load, and whether its bills are right;
//! - `nodes`: several of it over NATS; `load`: who asks them; `replicas`: what they hold in the end;
//! - `region`: three of them over three servers, and what can happen to those and to the network between them.

pub mod checkers;
pub mod child;
pub mod clients;
pub mod crash;
pub mod dice;
pub mod faults;
pub mod load;
pub mod money;
pub mod nodes;
pub mod plan;
pub mod power;
pub mod region;
pub mod replicas;
pub mod shim;
pub mod system;
pub mod victim;
