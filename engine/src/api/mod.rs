//! The functions that a script can call.
//!
//! ```text
//!   volume("data", #{…})   machine("web", #{…})   …   one per workload kind, from the registry
//!        └──────┬──────────────────┘
//!            Handle: a property is answered from what was predicted, else waits for the resource
//! ```
//!
//! Nothing here does anything by itself: every effect is a [`Call`](crate::wire::Call) to the
//! parent. There are no files, no network, no clock and no chance.

mod context;
mod handle;
mod resources;
mod session;
mod standard;
mod value;

use std::sync::Arc;

use rhai::packages::{Package, StandardPackage};
use rhai::{Engine, EvalAltResult, FuncRegistration, NativeCallContext, OptimizationLevel};

pub use context::{NAMES as CONTEXT_NAMES, set as set_context};
pub use handle::Raised;
pub use session::{Halt, Link, Places, Session};
pub use standard::REFUSED;

pub type Fallible<T> = Result<T, Box<EvalAltResult>>;

/// Rhai's own limits that no farm needs to lower.
const MAX_EXPRESSION_DEPTH: usize = 64;
const MAX_EXPRESSION_DEPTH_IN_FUNCTIONS: usize = 32;
const MAX_VARIABLES: usize = 512;
const MAX_FUNCTIONS: usize = 128;
/// Operations between two looks at the clock.
const OPERATIONS_PER_LOOK: u64 = 1024;

/// Words of the language that scripts do not have: `eval` hides calls from the analysis, `curry`
/// doubles a value with each call, and a script is one file.
const DISABLED: [&str; 4] = ["eval", "curry", "import", "export"];

/// An engine with everything that a script can call.
pub fn engine(session: &Arc<Session>) -> Engine {
    let mut engine = Engine::new_raw();
    // Constant folding would run before any limit counts, and change what analysis sees.
    engine.set_optimization_level(OptimizationLevel::None);
    engine.register_global_module(StandardPackage::new().as_shared_module());
    for word in DISABLED {
        engine.disable_symbol(word);
    }
    engine
        .set_strict_variables(true)
        .set_max_expr_depths(MAX_EXPRESSION_DEPTH, MAX_EXPRESSION_DEPTH_IN_FUNCTIONS)
        .set_max_variables(MAX_VARIABLES)
        .set_max_functions(MAX_FUNCTIONS)
        .set_max_modules(0);
    standard::register(&mut engine);
    handle::register(&mut engine, session);
    resources::register(&mut engine, session);
    context::register(&mut engine, session);
    let watched = Arc::clone(session);
    engine.on_progress(move |operations| {
        let look = operations % OPERATIONS_PER_LOOK == 0;
        (watched.stopped() || look && watched.out_of_time()).then_some(rhai::Dynamic::UNIT)
    });
    engine
}

/// The limits of one evaluation, on top of those of [`engine`].
pub fn set_limits(engine: &mut Engine, limits: &rhizome_model::Limits) {
    // To Rhai 0 means that there is no limit.
    engine
        .set_max_operations(limits.operations.max(1))
        .set_max_call_levels(limits.call_depth.max(1))
        .set_max_string_size(limits.string.max(1))
        .set_max_array_size(limits.array.max(1))
        .set_max_map_size(limits.map.max(1));
}

/// A function of ours: documented, and never evaluated ahead of time.
fn function(name: &str, params: &[&str], doc: &str) -> FuncRegistration {
    FuncRegistration::new(name)
        .with_volatility(true)
        .with_params_info(params)
        .with_comments(doc.lines().map(|line| format!("/// {line}").trim_end().to_owned()))
}

/// Where the script calls the function that is running.
fn place(context: &NativeCallContext) -> rhai::Position {
    context.call_position()
}
