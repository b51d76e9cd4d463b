//! `rhizome events`: what happened, and with -f what happens.

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::StreamExt;
use jiff::tz::TimeZone;
use rhizome_model::{Backoff, Class, Code, DeploymentId, Event, Failure};
use rhizome_service::random::jittered;
use serde::Serialize;

use crate::cli::Globals;
use crate::coord::{Coord, Session};
use crate::error::Error;
use crate::output;
use crate::refs::DeploymentRef;
use crate::render::event;

const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rhizome events demo -f\n  rhizome events demo --after 42 --json"
)]
pub struct Args {
    /// The deployment: NAME, or ACCOUNT/NAME.
    pub name: DeploymentRef,
    /// Go on with those to come, until Ctrl-C.
    #[arg(short, long)]
    pub follow: bool,
    /// Only events after the one with this number (`id` in the JSON of -f).
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub after: u64,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let coord = Session::open(globals)?.coord;
    let id = coord.resolve(&args.name).await?;
    let printer = Printer { json: globals.json, zone: TimeZone::system() };
    if args.follow {
        return Err(go_on(&coord, &id, args.after, &printer).await.into());
    }
    for event in coord.past_events(&id, args.after).await? {
        printer.print(&event, &event);
    }
    Ok(ExitCode::SUCCESS)
}

struct Printer {
    json: bool,
    zone: TimeZone,
}

impl Printer {
    fn print(&self, event: &Event, as_json: &impl Serialize) {
        if self.json {
            output::json(as_json);
        } else {
            output::line(event::line(event, &self.zone));
        }
    }
}

/// Prints events until something ends that would end again just so.
async fn go_on(coord: &Coord, id: &DeploymentId, mut after: u64, printer: &Printer) -> Failure {
    // Before the first sign of life an unreachable coord is an error, later it is waited for.
    let mut heard = false;
    let mut attempt = 0;
    loop {
        let failure = match coord.events(id, after).await {
            Ok(events) => {
                if attempt > 0 {
                    output::note("coord is back");
                }
                (heard, attempt) = (true, 0);
                let mut events = pin!(events);
                loop {
                    match events.next().await {
                        Some(Ok(numbered)) => {
                            after = numbered.id;
                            printer.print(&numbered.event, &numbered);
                        }
                        Some(Err(failure)) => break failure,
                        None => {
                            break Failure::new(Code::Unavailable, "coord closed the connection");
                        }
                    }
                }
            }
            Err(failure) => failure,
        };
        if !heard || failure.code.class() != Class::Unreachable {
            return failure;
        }
        if attempt == 0 {
            output::note(format!("{failure}; trying again"));
        }
        attempt += 1;
        tokio::time::sleep(jittered(BACKOFF, attempt)).await;
    }
}
