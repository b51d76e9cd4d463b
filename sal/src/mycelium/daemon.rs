//! The daemon's process: started, looked at, ended, started again.

use std::collections::VecDeque;
use std::io::{Seek, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_model::Backoff;
use rhizome_model::api::NetworkView;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Child;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::api::Api;
use super::{MyceliumConfig, Peers, state, tun};
use crate::error::{During, Result};
use crate::tool;

const RESTART: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
/// What ran that long did not fail at once.
const HEALTHY: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Until it has answered for the first time.
const LOOK_AT_FIRST: Duration = Duration::from_millis(100);
/// It answers at the latest then, or something is wrong.
const READY_WITHIN: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(5);
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Of what it says, these lines are kept for when it dies, and not more of each.
const KEPT_LINES: usize = 5;
const MAX_LINE: usize = 500;

type Tail = Arc<Mutex<VecDeque<String>>>;

/// Keeps it running until told to stop.
pub(super) async fn keep(
    config: MyceliumConfig,
    publish: watch::Sender<NetworkView>,
    stop: CancellationToken,
) {
    let mut deaths = 0;
    loop {
        let started = Instant::now();
        let cause = live(&config, &publish, &stop).await;
        if stop.is_cancelled() {
            return;
        }
        deaths = if started.elapsed() > HEALTHY { 1 } else { deaths + 1 };
        // Not spread: nobody else starts ours.
        let pause = RESTART.bound(deaths);
        tracing::warn!(%cause, ?pause, "mycelium is started again");
        publish.send_modify(|view| {
            state::away(view, cause);
            view.restarts += 1;
        });
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// One life of the daemon; answers why it ended.
async fn live(
    config: &MyceliumConfig,
    publish: &watch::Sender<NetworkView>,
    stop: &CancellationToken,
) -> String {
    let tail = Tail::default();
    let (mut child, readers, api) = match start(config, &tail) {
        Ok(started) => started,
        Err(error) => return error.to_string(),
    };
    let looking = look(api, config.peers == Peers::Alone, publish);
    let status = tokio::select! {
        status = child.wait() => status,
        () = looking => unreachable!("looking never ends"),
        () = stop.cancelled() => end(&mut child).await,
    };
    let status = match status {
        Ok(status) => status,
        Err(error) => return format!("mycelium cannot be waited for: {error}"),
    };
    // Its last words may still be on their way; somebody else may hold the pipes open.
    for reader in readers {
        let _ = tokio::time::timeout(LAST_WORDS, reader).await;
    }
    let tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    match tail.back() {
        // Who was killed did not say why.
        Some(last) if status.code().is_some() => format!("mycelium ended ({status}): {last}"),
        _ => format!("mycelium ended ({status})"),
    }
}

/// Looks at it for ever.
async fn look(api: Api, alone: bool, publish: &watch::Sender<NetworkView>) {
    let begin = Instant::now();
    let mut answered = false;
    loop {
        match api.look().await {
            Ok(look) => {
                answered = true;
                publish.send_modify(|view| state::looked_at(view, look, alone));
            }
            Err(_) if !answered && begin.elapsed() < READY_WITHIN => {}
            Err(error) => publish.send_modify(|view| {
                state::away(view, format!("mycelium does not answer: {error}"))
            }),
        }
        tokio::time::sleep(if answered { LOOK_EVERY } else { LOOK_AT_FIRST }).await;
    }
}

fn start(config: &MyceliumConfig, tail: &Tail) -> Result<(Child, Vec<JoinHandle<()>>, Api)> {
    let (api, rpc) = (free_port()?, free_port()?);
    let secret = secret_file(config)?;
    let fd = secret.as_raw_fd();
    let mut command = tool::command(&config.program);
    command
        .args(arguments(config, fd, api, rpc))
        .env("HOME", &config.home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    tool::die_with_us(&mut command);
    let inherit = move || {
        // SAFETY: `start` holds it open until the daemon has been started.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    };
    // SAFETY: one plain system call, which allocates nothing.
    unsafe { command.pre_exec(inherit) };
    let mut command = tokio::process::Command::from(command);
    let mut child = command
        .kill_on_drop(true)
        .spawn()
        .during(format_args!("start {}", config.program.display()))?;
    let mut readers = Vec::new();
    readers.extend(child.stdout.take().map(|pipe| tokio::spawn(say(pipe, tail.clone()))));
    readers.extend(child.stderr.take().map(|pipe| tokio::spawn(say(pipe, tail.clone()))));
    Ok((child, readers, Api { address: api }))
}

fn arguments(
    config: &MyceliumConfig,
    secret: i32,
    api: SocketAddr,
    rpc: SocketAddr,
) -> Vec<String> {
    let port = config.port.to_string();
    let mut arguments = vec![
        "--key-file".to_owned(),
        format!("/proc/self/fd/{secret}"),
        "--tun-name".to_owned(),
        tun(config),
        "--api-addr".to_owned(),
        api.to_string(),
        "--jsonrpc-addr".to_owned(),
        rpc.to_string(),
        "--tcp-listen-port".to_owned(),
        port.clone(),
        "--quic-listen-port".to_owned(),
        port,
        // It would take machines on the bridge for neighbours, and whoever is on the farm's network.
        "--disable-peer-discovery".to_owned(),
        "--log-format".to_owned(),
        "plain".to_owned(),
    ];
    let peers = config.peers.named();
    if !peers.is_empty() {
        arguments.push("--peers".to_owned());
        arguments.extend(peers.iter().map(ToString::to_string));
    }
    arguments
}

/// The secret in memory that has no name. The daemon reads it once.
fn secret_file(config: &MyceliumConfig) -> Result<OwnedFd> {
    let make = || -> std::io::Result<OwnedFd> {
        let mut file = std::fs::File::from(memfd_create(c"secret", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&*config.secret)?;
        file.rewind()?;
        Ok(file.into())
    };
    make().during("hand mycelium its key")
}

/// A port of this host alone: whoever reaches that API may do anything with the daemon.
fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr());
    listener.during("find a port for mycelium's API")
}

async fn end(child: &mut Child) -> std::io::Result<std::process::ExitStatus> {
    if let Some(pid) = child.id() {
        // It may have ended by itself just now; it is waited for in any case.
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
    }
    if let Ok(status) = tokio::time::timeout(PATIENCE, child.wait()).await {
        return status;
    }
    tracing::warn!("mycelium does not stop; killed");
    child.start_kill()?;
    child.wait().await
}

/// Writes what it says into our log.
async fn say(mut pipe: impl AsyncRead + Unpin, tail: Tail) {
    let (mut buffer, mut line) = ([0; 4096], Vec::new());
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        for byte in &buffer[..length] {
            if *byte == b'\n' {
                say_line(&std::mem::take(&mut line), &tail);
            } else if line.len() < MAX_LINE {
                line.push(*byte);
            }
        }
    }
}

fn say_line(line: &[u8], tail: &Tail) {
    let line: String = String::from_utf8_lossy(line).chars().filter(|c| !c.is_control()).collect();
    tracing::info!(target: "mycelium", "{line}");
    let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    tail.push_back(line);
    if tail.len() > KEPT_LINES {
        tail.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rhizome_model::KeyId;
    use zeroize::Zeroizing;

    use super::*;

    #[test]
    fn the_command_line_holds_no_secret_and_ends_with_the_peers() {
        let config = MyceliumConfig {
            program: PathBuf::from("/usr/bin/mycelium"),
            node: KeyId([7; 32]),
            secret: Zeroizing::new([9; 32]),
            address: "400::1".parse().unwrap(),
            peers: Peers::parse(&["tcp://192.0.2.1:9651", "quic://192.0.2.2:1"], false).unwrap(),
            port: 9651,
            home: "/nowhere".into(),
        };
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let line = arguments(&config, 9, address(1), address(2)).join(" ");
        assert_eq!(
            line,
            "--key-file /proc/self/fd/9 --tun-name rz07070707-my --api-addr 127.0.0.1:1 \
             --jsonrpc-addr 127.0.0.1:2 --tcp-listen-port 9651 --quic-listen-port 9651 \
             --disable-peer-discovery --log-format plain \
             --peers tcp://192.0.2.1:9651 quic://192.0.2.2:1"
        );
        assert!(!format!("{config:?}").contains("9, 9"));
    }
}
