//! Who sees to it that the day is bad. All of it comes from one seed, and is told.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::fleet::Fleet;
use crate::proxy::{Plan, Proxy, what_matters};
use crate::server::Server;

/// What can happen, and how often beside the others.
#[derive(Debug, Clone, Copy)]
enum Blow {
    KillRunner,
    /// Stands still for less than its silence, and goes on.
    PauseRunner,
    /// Stands still until the fence kills it.
    FreezeRunner,
    KillServer,
    FreezeServer(Duration),
    /// Cuts what matters, often in the middle of replies, for a while.
    Storm,
    /// Cuts everything at once.
    Cut,
}

const SHORT: Duration = Duration::from_millis(500);
const LONG: Duration = Duration::from_secs(5);
const MINUTE: Duration = Duration::from_secs(60);

pub struct Nemesis {
    dice: fastrand::Rng,
    /// How long a runner may be silent.
    silence: Duration,
    blows: Vec<Blow>,
    /// Between two blows, at most.
    rest: Duration,
}

impl Nemesis {
    /// For a run of half a minute.
    pub fn short(seed: u64, silence: Duration) -> Self {
        let mut blows = vec![Blow::FreezeServer(SHORT); 2];
        blows.extend([Blow::KillServer, Blow::KillServer, Blow::FreezeServer(LONG)]);
        blows.extend([Blow::FreezeRunner, Blow::FreezeRunner, Blow::PauseRunner, Blow::Cut]);
        blows.extend([Blow::KillRunner, Blow::KillRunner, Blow::KillRunner]);
        blows.extend([Blow::Storm, Blow::Storm]);
        let rest = Duration::from_millis(900);
        Self { dice: fastrand::Rng::with_seed(seed), silence, blows, rest }
    }

    /// For minutes: redis-server also stands still for one of them.
    pub fn long(seed: u64, silence: Duration) -> Self {
        let mut nemesis = Self::short(seed, silence);
        nemesis.blows.extend(nemesis.blows.clone());
        nemesis.blows.extend(nemesis.blows.clone());
        nemesis.blows.push(Blow::FreezeServer(MINUTE));
        nemesis.rest = Duration::from_secs(2);
        nemesis
    }

    /// Deals out all of its blows in random order, again and again; never ends by itself.
    pub async fn rage(
        &mut self,
        server: &mut Server,
        proxy: &Proxy,
        fleet: &Fleet,
        mut tell: impl FnMut(&str),
    ) -> anyhow::Result<()> {
        loop {
            let mut blows = self.blows.clone();
            self.dice.shuffle(&mut blows);
            for blow in blows {
                tokio::time::sleep(self.rest.mul_f64(self.dice.f64())).await;
                self.strike(blow, server, proxy, fleet, &mut tell).await?;
            }
        }
    }

    async fn strike(
        &mut self,
        blow: Blow,
        server: &mut Server,
        proxy: &Proxy,
        fleet: &Fleet,
        tell: &mut impl FnMut(&str),
    ) -> anyhow::Result<()> {
        match blow {
            Blow::KillRunner => {
                let runner = self.victim(fleet);
                tell(&format!("SIGKILL to runner {runner}"));
                fleet.signal(&runner, Signal::SIGKILL);
            }
            Blow::PauseRunner => {
                let (runner, pause) = (self.victim(fleet), self.silence.mul_f64(0.5));
                tell(&format!("SIGSTOP to runner {runner} for {pause:?}"));
                fleet.signal(&runner, Signal::SIGSTOP);
                tokio::time::sleep(pause).await;
                fleet.signal(&runner, Signal::SIGCONT);
            }
            Blow::FreezeRunner => {
                let runner = self.victim(fleet);
                tell(&format!("SIGSTOP to runner {runner}"));
                fleet.signal(&runner, Signal::SIGSTOP);
            }
            Blow::KillServer => {
                let pause = SHORT.mul_f64(self.dice.f64());
                tell(&format!("SIGKILL to redis-server, back in {pause:?}"));
                server.kill()?;
                tokio::time::sleep(pause).await;
                server.start_again()?;
            }
            Blow::FreezeServer(pause) => {
                tell(&format!("SIGSTOP to redis-server for {pause:?}"));
                server.freeze()?;
                tokio::time::sleep(pause).await;
                server.thaw()?;
            }
            Blow::Storm => {
                let (chance, pause) = (0.05 * self.dice.f64(), LONG.mul_f64(self.dice.f64()));
                let seed = self.dice.u64(..);
                tell(&format!("one in {:.0} calls is cut, for {pause:?}", 1.0 / chance));
                proxy.count(what_matters, Plan::Storm { chance, seed });
                tokio::time::sleep(pause).await;
                tell(&format!("the wire is calm again; {} calls were cut", proxy.fired()));
                proxy.calm();
            }
            Blow::Cut => {
                tell("all connections are cut");
                proxy.cut_all();
            }
        }
        Ok(())
    }

    fn victim(&mut self, fleet: &Fleet) -> String {
        self.dice.choice(fleet.runners()).unwrap_or_default()
    }
}
