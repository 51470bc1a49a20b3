//! Where lines about refused and admitted flows go, beside the agent's own log.

pub mod file;
pub mod otlp;
