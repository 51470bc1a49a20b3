//! The live lab: policies against real sockets and raw frames, on one node and on two, and what the agent promises about
//! its life and its neighbours.
#![cfg(feature = "live")]

mod births;
mod counter;
mod exits;
mod flows;
mod frames;
mod life;
mod losses;
mod neighbours;
mod pause;
mod pins;
mod scene;
mod table;
mod traffic;
mod troubles;
mod uplink;
