//! What the project is tested with.

pub mod lab;
