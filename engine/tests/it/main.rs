//! The engine against real sandboxes: every test evaluates in the process that Rhizome uses.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod attacks;
mod checks;
mod diagnostics;
mod documents;
mod evaluation;
mod hostile;
mod limits;
mod plans;
mod privileges;
mod processes;
mod spare;
mod speed;
mod support;
