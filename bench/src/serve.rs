//! The side of a peer's process: it does what it is asked on its standard input.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rhizome_queue::Durability;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::time::MissedTickBehavior;

use crate::ask::{Answer, Ask};
use crate::payload::Payload;
use crate::peers::{Kind, Peer};
use crate::tally::Tally;

/// Jobs whose handlers have not begun so long after the last was submitted are not waited for.
pub const LATEST: Duration = Duration::from_secs(10);

struct Serving {
    peer: Arc<dyn Peer>,
    tally: Arc<Tally>,
    works: bool,
}

pub async fn serve(kind: Kind, socket: &Path, durability: Durability) -> Result<()> {
    let peer = kind.open(socket, durability).await.context("cannot connect")?;
    let mut serving = Serving { peer: peer.into(), tally: Arc::default(), works: false };
    let mut asked = BufReader::new(tokio::io::stdin()).lines();
    let mut out = tokio::io::stdout();
    while let Some(line) = asked.next_line().await? {
        let begun = Instant::now();
        let answer = match serving.answer(serde_json::from_str(&line)?).await {
            Ok((seconds, latencies_us)) => {
                let seconds = seconds.unwrap_or_else(|| begun.elapsed().as_secs_f64());
                Answer { seconds, cpu_us: cpu_us()?, latencies_us, failed: None }
            }
            Err(error) => Answer { failed: Some(format!("{error:#}")), ..Default::default() },
        };
        out.write_all(format!("{}\n", serde_json::to_string(&answer)?).as_bytes()).await?;
        out.flush().await?;
    }
    Ok(())
}

/// Ends the process: what is measured here cannot go on.
pub fn give_up(why: &dyn std::fmt::Display) {
    eprintln!("{why}");
    std::process::exit(1);
}

impl Serving {
    /// How long it took if not the whole time, and latencies.
    async fn answer(&mut self, ask: Ask) -> Result<(Option<f64>, Vec<f64>)> {
        match ask {
            Ask::Submit { jobs } => {
                let payloads = Payload::range(jobs);
                let begun = Instant::now();
                self.peer.submit(payloads).await?;
                return Ok((Some(begun.elapsed().as_secs_f64()), Vec::new()));
            }
            Ask::Work { total } => {
                self.work().await?;
                self.tally.until(total as u64).await;
            }
            Ask::Pace { jobs, every_us } => {
                self.work().await?;
                let every = Duration::from_micros(every_us);
                return Ok((None, self.pace(jobs, every).await?));
            }
            Ask::Hold => {
                self.tally.hold();
                self.work().await?;
                self.tally.until_held().await;
            }
            Ask::Usage => {}
        }
        Ok((None, Vec::new()))
    }

    async fn work(&mut self) -> Result<()> {
        if !self.works {
            self.peer.work(self.tally.clone()).await?;
            self.works = true;
        }
        Ok(())
    }

    /// One job at a time, whether or not the one before has begun.
    async fn pace(&self, jobs: usize, every: Duration) -> Result<Vec<f64>> {
        let target = self.tally.ended() + jobs as u64;
        self.tally.time(jobs);
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut submits = Vec::with_capacity(jobs);
        for payload in Payload::range(jobs) {
            ticks.tick().await;
            let peer = self.peer.clone();
            submits.push(tokio::spawn(async move {
                let begun = Instant::now();
                peer.submit_one(payload).await.map(|()| begun)
            }));
        }
        let mut begun = Vec::with_capacity(jobs);
        for submit in submits {
            begun.push(submit.await??);
        }
        let _ = tokio::time::timeout(LATEST, self.tally.until(target)).await;
        let latency = |(began, submitted): (&Option<Instant>, Instant)| {
            Some((*began)?.duration_since(submitted).as_secs_f64() * 1e6)
        };
        Ok(self.tally.times().iter().zip(begun).filter_map(latency).collect())
    }
}

fn cpu_us() -> Result<u64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as u64)
}
