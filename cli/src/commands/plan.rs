//! `rhizome plan`: what a deploy would change, without changing anything.

use std::process::ExitCode;

use rhizome_model::{AccountId, Class, DeploymentId, Failure};

use super::check;
use crate::cli::Globals;
use crate::coord::Session;
use crate::document::{DocumentArgs, prepare, read_script};
use crate::error::Error;
use crate::plan::{self, Foretold};
use crate::{output, render};

/// There is something to do.
const CHANGES: u8 = 10;

#[derive(Debug, clap::Args)]
#[command(
    // Without a name it is planned under that of the file.
    mut_arg("name", |name| name.required(false)),
    after_help = "Examples:\n  \
    rhizome plan web.rhai\n  \
    rhizome plan web.rhai --name web --param replicas=3\n  \
    rhizome plan web.rhai --name web --json | jq .nodes[].resources\n\
    Exit codes: 0 nothing would change, 10 something would, 1 it cannot be planned or would be refused."
)]
pub struct Args {
    #[command(flatten)]
    pub document: DocumentArgs,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let foretold = foretell(&args.document, globals).await.map_err(as_failed)?;
    if globals.json {
        output::json(&foretold);
    } else {
        output::line(render::plan::show(&foretold));
        for node in &foretold.nodes {
            if let Some(failure) = &node.failure {
                output::note(output::failure_text(failure));
            }
        }
    }
    Ok(match (&foretold.failure, foretold.changes) {
        (Some(_), _) => ExitCode::from(Class::Failed.exit_code()),
        (None, true) => ExitCode::from(CHANGES),
        (None, false) => ExitCode::SUCCESS,
    })
}

async fn foretell(args: &DocumentArgs, globals: &Globals) -> Result<Foretold, Error> {
    let sandboxes = check::sandboxes()?;
    let file = args.file.display().to_string();
    match server(args, globals).await? {
        Ok(session) => {
            let document = prepare(args, &session).await?;
            plan::on_nodes(&session.coord, &sandboxes, &file, &document).await
        }
        Err(cause) => {
            let (source, params) = (read_script(&args.file)?, args.params());
            check::refuse_findings(&file, &source, &params).await?;
            output::note(format!(
                "planned from nothing, for no particular node; addresses are made up: {cause}"
            ));
            let name = args.reference()?;
            let account = name.account.unwrap_or(AccountId(1));
            let deployment = DeploymentId { account, name: name.name };
            plan::from_nothing(&sandboxes, &file, source, params, deployment).await
        }
    }
}

/// Who knows what the nodes have; or why nobody does, where no node is asked for.
async fn server(
    args: &DocumentArgs,
    globals: &Globals,
) -> Result<Result<Session, Failure>, Failure> {
    let reached = async {
        let session = Session::open(globals)?;
        session.coord.account().await?;
        Ok(session)
    };
    match reached.await {
        Ok(session) => Ok(Ok(session)),
        Err(failure) if is_away(&failure) && args.node.is_empty() => Ok(Err(failure)),
        Err(failure) => Err(failure),
    }
}

fn is_away(failure: &Failure) -> bool {
    failure.code.class() == Class::Unreachable
}

/// To who plans, whatever stands in the way is a failure of the plan; but misuse stays misuse.
fn as_failed(error: Error) -> Error {
    let misuse = error.exit == Class::Misuse.exit_code();
    let exit = if misuse { error.exit } else { Class::Failed.exit_code() };
    Error { exit, ..error }
}
