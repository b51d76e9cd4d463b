//! `rhizome check`: everything that is wrong with scripts, without a server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use rhizome_engine::{SandboxOptions, Sandboxes};
use rhizome_model::{Class, Failure};
use serde_json::{Value, json};

use super::read_input;
use crate::cli::Globals;
use crate::document::Param;
use crate::error::{Error, internal, misuse};
use crate::output;

/// Far above the limit of a script: what is longer is the check's to refuse, not ours to read.
const MAX_READ: usize = 16 << 20;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    rhizome check scripts/*.rhai\n  \
    rhizome check web.rhai --param replicas=3")]
pub struct Args {
    /// The scripts; - reads standard input.
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// A value that the scripts see as params.K: JSON where it is JSON, else text.
    #[arg(long, value_name = "K=V")]
    pub param: Vec<Param>,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let params: BTreeMap<_, _> = args.param.into_iter().map(|p| (p.key, p.value)).collect();
    // Read before anything is said: a file that is not there is misuse of the whole.
    let sources = args.files.iter().map(|file| Ok((file.display().to_string(), source(file)?)));
    let sources = sources.collect::<Result<Vec<_>, Failure>>()?;
    let sandboxes = sandboxes()?;
    let mut files = Vec::new();
    let mut clean = true;
    for (file, source) in sources {
        let findings = rhizome_engine::check(&sandboxes, &file, &source, params.clone()).await;
        clean &= findings.is_empty();
        if !globals.json {
            show(&file, &findings);
        }
        files.push(json!({ "file": file, "findings": findings }));
    }
    if globals.json {
        output::json(&json!({ "ok": clean, "files": files }));
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::from(Class::Failed.exit_code()) })
}

/// Ends a deploy before anything is signed when its script has mistakes.
pub async fn refuse_findings(
    file: &str,
    source: &str,
    params: &BTreeMap<String, Value>,
) -> Result<(), Error> {
    let findings = rhizome_engine::check(&sandboxes()?, file, source, params.clone()).await;
    if findings.is_empty() { Ok(()) } else { Err(Error::refused(findings)) }
}

fn source(file: &std::path::Path) -> Result<String, Failure> {
    String::from_utf8(read_input(file, MAX_READ)?)
        .map_err(|_| misuse(format!("{} is not text (UTF-8)", file.display())))
}

/// For one evaluation by this process.
pub fn sandboxes() -> Result<Sandboxes, Failure> {
    let program = std::env::current_exe()
        .map_err(|e| internal("cannot find our own program for the sandbox", &e))?;
    let args = vec!["sandbox".into()];
    Ok(Sandboxes::new(SandboxOptions { program, args, uid_gid: None }))
}

fn show(file: &str, findings: &[Failure]) {
    if findings.is_empty() {
        output::line(format!("{file}: no mistakes found"));
    }
    for finding in findings {
        output::note(output::failure_text(finding));
    }
}
