//! What people and monitoring see of the agent.

pub mod http;
pub mod metrics;
