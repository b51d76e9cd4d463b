//! What an account may have of a farm: however its nodes ask and give back, side by side, it never
//! has more, and the ledger never believes that it has less.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rhizome_model::api::{NodeUsage, UsageReply};
use rhizome_model::{AccountId, Capacity, Code, Failure, Outcome, Phase, Task};
use rhizome_queue::{Acceptance, Allow, Beyond, Entries, Queue, QueueError, Runner};

use crate::support::{Server, capacity, deployment, take, task};
use crate::tasks::{ACCEPTED, accept, accept_allowed, scripts};

const ACCOUNT: AccountId = AccountId(1);

/// A ledger that has granted so much of a farm, and nothing of its nodes.
struct Ledger {
    granted: Capacity,
    nodes: Mutex<BTreeMap<usize, (u64, Capacity)>>,
    asked: AtomicUsize,
}

impl Ledger {
    fn new(granted: Capacity) -> Arc<Self> {
        Arc::new(Self { granted, nodes: Mutex::default(), asked: AtomicUsize::new(0) })
    }

    fn take(&self, node: usize, usage: NodeUsage) -> Result<UsageReply, Failure> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut nodes = self.nodes.lock().unwrap();
        let (number, held) = nodes.get(&node).copied().unwrap_or_default();
        let NodeUsage { number: said, capacity, reserved, .. } = usage;
        if said <= number {
            let taken = (said, capacity) == (number, held);
            return Ok(UsageReply { taken, number, capacity: held });
        }
        let others = nodes.iter().filter(|(n, _)| **n != node).map(|(_, (_, held))| *held);
        let grows = !reserved && held.admit(capacity).is_err();
        let all = Capacity::total(others).saturating_add(capacity);
        if grows && self.granted.admit(all).is_err() {
            return Err(Failure::new(Code::NotGranted, "the farm's grant is used up"));
        }
        nodes.insert(node, (said, capacity));
        Ok(UsageReply { taken: true, number: said, capacity })
    }

    fn of(&self, node: usize) -> Capacity {
        self.nodes.lock().unwrap().get(&node).map(|(_, held)| *held).unwrap_or_default()
    }
}

async fn agree(queue: &Queue, ledger: &Ledger, node: usize, beyond: &Beyond) -> Option<Code> {
    let asked = queue.agree(ACCOUNT, beyond, |usage| async move {
        // The wire takes a while, so that others come in between.
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        ledger.take(node, usage)
    });
    asked.await.err().map(|failure| failure.code)
}

async fn trim(queue: &Queue, ledger: &Ledger, node: usize, told: Option<u64>) -> u64 {
    let trimmed = queue.trim(ACCOUNT, Capacity::default(), told, |usage| async move {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        ledger.take(node, usage)
    });
    trimmed.await.unwrap()
}

/// As a supervisor does it.
async fn deploy(queue: &Queue, ledger: &Ledger, node: usize, task: &Task) -> Option<Code> {
    loop {
        let allow = Allow::AtLeast(Capacity::default());
        match accept_allowed(queue, task, allow).await {
            ACCEPTED => return None,
            Acceptance::Beyond(beyond) => {
                if let Some(refusal) = agree(queue, ledger, node, &beyond).await {
                    return Some(refusal);
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Ends every deployment a while after it came.
async fn end_all(queue: Queue, mut runner: Runner) {
    while let Some(lease) = runner.next().await {
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        let id = lease.job.deployment.clone().unwrap();
        let mut held = queue.task(&id).await.unwrap().unwrap();
        held.phase = Phase::Deleted;
        held.reserved = Capacity::default();
        lease.finish_with(&Outcome::Cancelled, Some(&held), &[]).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_within_the_allowance_asks_nobody_and_what_is_beyond_asks_once() {
    let server = Server::start();
    let queue = server.queue().await;
    let ledger = Ledger::new(capacity(3000, 3));
    let first = task(&deployment("a"), 1, capacity(1000, 1));
    assert_eq!(accept_allowed(&queue, &first, Allow::AtLeast(capacity(1000, 1))).await, ACCEPTED);
    let second = task(&deployment("b"), 1, capacity(1000, 1));
    let beyond = match accept_allowed(&queue, &second, Allow::AtLeast(capacity(1000, 1))).await {
        Acceptance::Beyond(beyond) => beyond,
        other => panic!("{other:?}"),
    };
    assert_eq!((beyond.allowed, beyond.needed), (capacity(1000, 1), capacity(2000, 2)));
    assert_eq!(queue.reserved().await.unwrap(), capacity(1000, 1), "a refusal changes nothing");
    assert_eq!(agree(&queue, &ledger, 0, &beyond).await, None);
    assert_eq!(accept_allowed(&queue, &second, Allow::AsBefore).await, ACCEPTED);
    assert_eq!((ledger.of(0), ledger.asked.load(Ordering::Relaxed)), (capacity(2000, 2), 1));

    // Of another account nothing was said; of one that may have all nothing counts any more.
    let other =
        Task { deployment: "2/c".parse().unwrap(), ..task(&deployment("c"), 1, capacity(4000, 4)) };
    assert_eq!(accept(&queue, &other, None).await, ACCEPTED);
    let third = task(&deployment("d"), 1, capacity(2000, 2));
    assert!(matches!(accept_allowed(&queue, &third, Allow::AsBefore).await, Acceptance::Beyond(_)));
    assert_eq!(accept_allowed(&queue, &third, Allow::All).await, ACCEPTED);
}

#[tokio::test]
async fn a_script_and_a_resize_are_held_to_it_too() {
    let server = Server::start();
    let queue = server.queue().await;
    let mut runner = scripts(&queue, "a").await;
    let mine = task(&deployment("a"), 1, capacity(1000, 1));
    assert_eq!(accept_allowed(&queue, &mine, Allow::AtLeast(capacity(1500, 2))).await, ACCEPTED);
    let lease = take(&mut runner).await;
    let running = Task { phase: Phase::Running, reserved: capacity(1500, 2), ..mine.clone() };
    lease.journal(&running, &Entries::default()).await.unwrap();
    let more = Task { reserved: capacity(1600, 2), ..running.clone() };
    for refused in [lease.journal(&more, &Entries::default()).await, lease.update(&more, &[]).await]
    {
        let Err(QueueError::Beyond(beyond)) = refused else { panic!("{refused:?}") };
        assert_eq!(beyond.needed, capacity(1600, 2));
    }
    assert_eq!(queue.reserved().await.unwrap(), running.reserved);
    let less = Task { reserved: capacity(100, 0), ..running };
    lease.update(&less, &[]).await.unwrap();
}

#[tokio::test]
async fn who_was_told_more_than_a_node_remembers_is_not_believed_less() {
    let server = Server::start();
    let queue = server.queue().await;
    let ledger = Ledger::new(capacity(3000, 3));
    // Its disks were lost, and with them what it had said.
    ledger
        .take(
            0,
            NodeUsage {
                account: ACCOUNT,
                number: 41,
                capacity: capacity(2000, 2),
                reserved: false,
            },
        )
        .unwrap();
    let mine = task(&deployment("a"), 1, capacity(1000, 1));
    assert_eq!(deploy(&queue, &ledger, 0, &mine).await, None);
    let told = trim(&queue, &ledger, 0, None).await;
    assert!(told > 41 && ledger.of(0) == capacity(1000, 1), "{told}: {}", ledger.of(0));
    let asked = ledger.asked.load(Ordering::Relaxed);
    assert_eq!(trim(&queue, &ledger, 0, Some(told)).await, told);
    assert_eq!(ledger.asked.load(Ordering::Relaxed), asked, "it knows");
}

#[tokio::test(flavor = "multi_thread")]
async fn side_by_side_on_three_nodes_it_never_has_more() {
    let granted = capacity(4000, 4);
    let ledger = Ledger::new(granted);
    let servers = [Server::start(), Server::start(), Server::start()];
    let mut queues = Vec::new();
    for server in &servers {
        queues.push(server.queue().await);
    }
    let refusals = Arc::new(AtomicUsize::new(0));
    let mut workers = tokio::task::JoinSet::new();
    for (node, queue) in queues.iter().enumerate() {
        tokio::spawn(end_all(queue.clone(), scripts(queue, "a").await));
        for worker in 0..3usize {
            let (queue, ledger, refusals) = (queue.clone(), ledger.clone(), refusals.clone());
            workers.spawn(async move {
                for round in 0..25u64 {
                    let id = deployment(&format!("d{worker}-{round}"));
                    let much = u32::try_from(500 + 250 * ((round + worker as u64) % 4)).unwrap();
                    let task = task(&id, 1, capacity(much, 1));
                    match deploy(&queue, &ledger, node, &task).await {
                        None => drop(queue.wait(task.job).await.unwrap()),
                        Some(Code::NotGranted) => {
                            refusals.fetch_add(1, Ordering::Relaxed);
                        }
                        Some(other) => panic!("{other}"),
                    }
                }
            });
        }
        let (queue, ledger) = (queue.clone(), ledger.clone());
        workers.spawn(async move {
            let mut told = None;
            for _ in 0..60 {
                told = Some(trim(&queue, &ledger, node, told).await);
            }
        });
    }
    let looker = tokio::spawn({
        let (queues, ledger) = (queues.clone(), ledger.clone());
        async move {
            loop {
                for (node, queue) in queues.iter().enumerate() {
                    let before = ledger.nodes.lock().unwrap().get(&node).copied();
                    let reserved = queue.reserved().await.unwrap();
                    let after = ledger.nodes.lock().unwrap().get(&node).copied();
                    // Else it may have been reserved before, or given back since.
                    if before == after {
                        let known = before.unwrap_or_default().1;
                        assert!(known.admit(reserved).is_ok(), "{reserved} of {known}");
                    }
                }
            }
        }
    });
    while let Some(worker) = workers.join_next().await {
        worker.unwrap();
    }
    looker.abort();
    assert!(looker.await.unwrap_err().is_cancelled(), "nobody had more than the ledger knew");
    let mut all = Vec::new();
    for (node, queue) in queues.iter().enumerate() {
        trim(queue, &ledger, node, None).await;
        all.push(queue.reserved().await.unwrap());
    }
    assert_eq!(all, [Capacity::default(); 3]);
    assert_eq!([0, 1, 2].map(|node| ledger.of(node)), [Capacity::default(); 3]);
    assert!(refusals.load(Ordering::Relaxed) > 0, "the test never came to the limit");
    for queue in &queues {
        assert_eq!(queue.accounts_with_allowance().await.unwrap(), [ACCOUNT].into());
    }
}

#[tokio::test]
async fn what_an_account_had_before_is_told_whatever_was_granted() {
    let server = Server::start();
    let queue = server.queue().await;
    let ledger = Ledger::new(capacity(1000, 1));
    let before = task(&deployment("a"), 1, capacity(3000, 3));
    assert_eq!(accept_allowed(&queue, &before, Allow::All).await, ACCEPTED);
    assert_eq!(queue.accounts_that_reserve().await.unwrap(), [ACCOUNT].into());
    assert!(queue.accounts_with_allowance().await.unwrap().is_empty());
    trim(&queue, &ledger, 0, None).await;
    assert_eq!(ledger.of(0), capacity(3000, 3));
    // So there is nothing left for it on another node.
    let other = Server::start();
    let mine = task(&deployment("b"), 1, capacity(100, 0));
    assert_eq!(deploy(&other.queue().await, &ledger, 1, &mine).await, Some(Code::NotGranted));
    assert_eq!(deploy(&queue, &ledger, 0, &mine).await, Some(Code::NotGranted));
}
