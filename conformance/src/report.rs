//! Running the cases.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;

use crate::{Backend, Bed, Case};

/// Whatever a case does is over by then on any machine that is alive.
const DEADLINE: Duration = Duration::from_secs(60);
/// Cases at a time, each with a node of its own: mostly they wait.
const AT_A_TIME: usize = 6;

/// What became of a case.
#[derive(Debug, Clone)]
pub enum Verdict {
    Held(Duration),
    Broken(String),
    /// With the reason.
    Skipped(String),
}

pub struct Report {
    pub backend: String,
    pub verdicts: Vec<(&'static Case, Verdict)>,
}

impl Report {
    /// Nothing is broken. What was skipped was not shown.
    pub fn is_sound(&self) -> bool {
        !self.verdicts.iter().any(|(_, verdict)| matches!(verdict, Verdict::Broken(_)))
    }

    /// The names of the cases that do not hold.
    pub fn broken(&self) -> Vec<&'static str> {
        let broken = self.verdicts.iter().filter(|(_, v)| matches!(v, Verdict::Broken(_)));
        broken.map(|(case, _)| case.name).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.backend)?;
        for (case, verdict) in &self.verdicts {
            match verdict {
                Verdict::Held(took) => writeln!(f, "  held     {} ({took:.1?})", case.name)?,
                Verdict::Broken(why) => writeln!(f, "  BROKEN   {}: {why}", case.name)?,
                Verdict::Skipped(why) => writeln!(f, "  skipped  {}: {why}", case.name)?,
            }
        }
        Ok(())
    }
}

/// Runs all cases.
pub async fn run(backend: Arc<dyn Backend>) -> Report {
    let name = backend.name();
    let runs = futures_util::stream::iter(crate::all()).map(|case| {
        let backend = backend.clone();
        async move { (case, run_case(backend, case).await) }
    });
    let verdicts = runs.buffered(AT_A_TIME).collect().await;
    Report { backend: name, verdicts }
}

/// Runs one case on a fresh node.
pub async fn run_case(backend: Arc<dyn Backend>, case: &'static Case) -> Verdict {
    if let Some(why) = backend.is_missing() {
        return Verdict::Skipped(why);
    }
    if let Some(why) = case.needs.iter().find_map(|capability| backend.lacks(*capability)) {
        return Verdict::Skipped(why);
    }
    let begun = Instant::now();
    let ran = tokio::spawn(async move {
        let bed = Bed::new(backend.start(case.needs).await?);
        (case.run)(bed).await
    });
    match tokio::time::timeout(DEADLINE, ran).await {
        Ok(Ok(Ok(()))) => Verdict::Held(begun.elapsed()),
        Ok(Ok(Err(error))) => Verdict::Broken(format!("{error:#}")),
        Ok(Err(panic)) => Verdict::Broken(panic.to_string()),
        Err(_) => Verdict::Broken(format!("it has not ended after {DEADLINE:?}")),
    }
}
