//! The engine against real sandboxes: every test evaluates in the process that Rhizome uses.

mod attacks;
mod checks;
mod diagnostics;
mod documents;
mod evaluation;
mod hostile;
mod limits;
mod plans;
mod privileges;
mod speed;
mod support;
