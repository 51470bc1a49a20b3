//! Why a flow is allowed or refused: the decision function's own answers, with what it looked up.
//!
//! Pure. The tables that are asked are the loaded maps (`kernel::Live`) or those of a compilation (`tables::sim`).

pub mod flows;
pub mod frame;
pub mod names;
pub mod port;
pub mod trace;
pub mod way;

#[cfg(test)]
mod tests;
