//! Keeping the ledger's picture of this node right: account, farm, node, facts, uptime.

use std::time::{Duration, Instant};

use rhizome_model::api::Registered;
use rhizome_model::registrar::NodeRegistration;
use rhizome_model::{AccountId, Code, Failure, FarmId, KeyId, NodeId};
use rhizome_service::clock;

use super::facts::{Facts, uptime};
use super::spool::Spool;
use super::{Config, FactsSource, FarmChoice};
use crate::LedgerClient;

/// How often the facts are looked at: cheap reads of /proc and /sys.
const FACTS_INTERVAL: Duration = Duration::from_secs(60);

/// Brings the ledger up to date, one step at a time. A step that failed can be made again.
pub struct Registrar {
    ledger: LedgerClient,
    config: Config,
    facts: FactsSource,
    /// What the ledger was told last.
    told: Option<(Registered, NodeRegistration)>,
    /// When the last uptime report was made.
    made: Option<Instant>,
    spool: Spool,
}

impl Registrar {
    pub fn new(ledger: LedgerClient, config: Config, facts: FactsSource, spool: Spool) -> Self {
        Self { ledger, config, facts, told: None, made: None, spool }
    }

    /// Whether the ledger knows this machine under another key than ours: then ours must not be made
    /// its identity.
    pub async fn known_as_other(&self, key: &KeyId) -> Result<Option<(String, NodeId)>, Failure> {
        let serial = (self.facts)()?.serial_number;
        let nodes = self.ledger.nodes_of_machine(&serial).await?;
        let other = nodes.into_iter().find(|node| node.key != *key);
        Ok(other.map(|node| (serial, node.id)))
    }

    /// The serial number of the machine.
    pub fn serial_number(&self) -> Result<String, Failure> {
        Ok((self.facts)()?.serial_number)
    }

    /// How many uptime reports the ledger has not taken yet.
    pub fn waiting(&self) -> u64 {
        self.spool.len() as u64
    }

    /// Makes the uptime report that is due. It is made also while the ledger is away.
    pub fn report(&mut self) -> Result<(), Failure> {
        let since = self.made.map(|at| at.elapsed());
        if since.is_none_or(|since| since >= self.config.uptime_interval) {
            self.spool.put(uptime()?, clock::now_secs())?;
            self.made = Some(Instant::now());
        }
        Ok(())
    }

    /// Brings the ledger up to date. What it calls this node, and when to come again.
    pub async fn step(&mut self) -> Result<(Registered, Duration), Failure> {
        let registered = self.ensure_registered().await?;
        self.deliver(registered).await?;
        Ok((registered, self.due().min(FACTS_INTERVAL)))
    }

    /// When the next report is to be made.
    pub fn due(&self) -> Duration {
        let since = self.made.map(|at| at.elapsed()).unwrap_or_default();
        self.config.uptime_interval.saturating_sub(since)
    }

    async fn ensure_registered(&mut self) -> Result<Registered, Failure> {
        let facts = (self.facts)()?;
        if let Some((registered, told)) = &self.told
            && self.describe(&facts, told.twin_id, told.farm_id) == *told
        {
            return Ok(*registered);
        }
        let account = self.ledger.ensure_account().await?;
        let farm = self.ensure_farm().await?;
        let node = self.describe(&facts, account.id, farm);
        let id = match self.ledger.node_by_account(account.id).await? {
            Some(known) => {
                self.ledger.update_node(known.id, &node).await?;
                known.id
            }
            None => self.ledger.register_node(node.clone()).await?,
        };
        let registered = Registered { account: account.id, farm, node: id };
        tracing::info!(node = %id, %farm, account = %account.id, "the ledger knows this node");
        self.told = Some((registered, node));
        Ok(registered)
    }

    fn describe(&self, facts: &Facts, account: AccountId, farm: FarmId) -> NodeRegistration {
        NodeRegistration {
            twin_id: account,
            farm_id: farm,
            resources: facts.resources,
            location: self.config.location.clone(),
            interfaces: facts.interfaces.clone(),
            secure_boot: facts.secure_boot,
            virtualized: facts.virtualized,
            serial_number: facts.serial_number.clone(),
            supervisor_url: self.config.supervisor_url.clone(),
        }
    }

    async fn ensure_farm(&self) -> Result<FarmId, Failure> {
        let name = match &self.config.farm {
            FarmChoice::Id(id) => return Ok(*id),
            FarmChoice::Name(name) => name,
        };
        if let Some(farm) = self.ledger.farm_by_name(name).await? {
            return Ok(farm.farm_id);
        }
        match self.ledger.create_farm(name).await {
            // Another node of the farm was faster.
            Err(failure) if failure.code == Code::Conflict => {
                Ok(self.ledger.farm_by_name(name).await?.ok_or(failure)?.farm_id)
            }
            made => made,
        }
    }

    /// Sends what waits, oldest first.
    async fn deliver(&mut self, registered: Registered) -> Result<(), Failure> {
        while let Some(batch) = self.spool.batch() {
            match self.ledger.report_uptimes(registered.node, &batch).await {
                Ok(reply) => self.spool.done(&batch, &reply)?,
                Err(failure) => {
                    if failure.code != Code::Unavailable {
                        // The ledger has forgotten us, or came back from an older copy, in which our
                        // ids may be others'. Asking for everything anew is right in each case.
                        self.told = None;
                    }
                    return Err(failure);
                }
            }
            tracing::debug!(node = %registered.node, reports = batch.reports.len(), "uptime reported");
        }
        Ok(())
    }
}
