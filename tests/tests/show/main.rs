//! What the commands say of the loaded state, against what sockets see.
#![cfg(feature = "live")]

mod explain;
mod plugin;
mod policies;
mod world;
