//! `conformance`: runs the suite against every backend that comes with it, and prints what held.

use std::process::ExitCode;
use std::sync::Arc;

use rhizome_conformance::{Backend, Model, Redis, run};

#[tokio::main]
#[allow(clippy::print_stdout, reason = "its output is for whoever started it")]
async fn main() -> ExitCode {
    let backends: [Arc<dyn Backend>; 4] = [
        Arc::new(Redis::functions()),
        Arc::new(Redis::scripts()),
        Arc::new(Redis::valkey()),
        Arc::new(Model::default()),
    ];
    let mut is_sound = true;
    for backend in backends {
        let report = run(backend).await;
        println!("{report}");
        is_sound &= report.is_sound();
    }
    if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
