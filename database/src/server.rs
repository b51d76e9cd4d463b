//! A PostgreSQL of our own, for tests and measurements: a cluster in a folder of its own, reached
//! through a socket in it, gone when whoever started it is gone.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::DatabaseUrl;

/// How long a server may take to answer, also after a crash.
const READY: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(10);
/// What was killed is gone by then.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Runs the server until the line (keep the folder) or the end (remove it) of standard input: the
/// end comes also when whoever started this is killed.
const KEEPER: &str = r#"
"$1/postgres" -D "$2/data" -k "$2" -c listen_addresses= $3 >>"$2/log" 2>&1 </dev/null &
server=$!
read -r _ && keep=1
kill -QUIT $server 2>/dev/null
wait $server
[ -n "$keep" ] || rm -rf "$2"
"#;

/// A running server, with the user `postgres` and no password.
pub struct PostgresServer {
    programs: PathBuf,
    folder: PathBuf,
    settings: String,
    keeper: Child,
}

impl PostgresServer {
    /// Where PostgreSQL's programs are: on PATH, else where Debian has them.
    pub fn programs() -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut debian: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .filter_map(|version| Some(version.ok()?.path().join("bin")))
            .collect();
        debian.sort();
        let mut folders = std::env::split_paths(&path).chain(debian.into_iter().rev());
        folders.find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
    }

    /// Makes a cluster and starts it, with settings such as `fsync=off`. What initdb makes is kept as
    /// `template`, if one is given, and copied the next time: that is five times as fast.
    pub async fn start(settings: &[&str], template: Option<&Path>) -> Result<Self, String> {
        let programs = Self::programs().ok_or(
            "PostgreSQL's initdb is neither on PATH nor below /usr/lib/postgresql: \
             apt-get install postgresql",
        )?;
        let name = std::env::temp_dir().join("rhizome-postgres-XXXXXX");
        let folder = nix::unistd::mkdtemp(&name)
            .map_err(|e| format!("cannot make a folder below {}: {e}", name.display()))?;
        if let Some(user) = server_user()? {
            std::os::unix::fs::chown(&folder, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                .map_err(|e| format!("cannot give {} to {}: {e}", folder.display(), user.name))?;
        }
        let data = folder.join("data");
        match template {
            Some(template) if template.exists() => copy(template, &data)?,
            _ => make_cluster(&programs, &data)?,
        }
        if let Some(template) = template.filter(|t| !t.exists()) {
            // Whole or not at all; of several that make it at once the first one counts.
            let made = template.with_extension(std::process::id().to_string());
            copy(&data, &made)?;
            if std::fs::rename(&made, template).is_err() {
                let _ = std::fs::remove_dir_all(&made);
            }
        }
        let settings = settings.iter().map(|s| format!("-c {s} ")).collect();
        let keeper = keep(&programs, &folder, &settings)?;
        let server = Self { programs, folder, settings, keeper };
        server.connect().await?;
        Ok(server)
    }

    /// The database that every cluster has.
    pub fn database(&self) -> DatabaseUrl {
        DatabaseUrl::Postgres(self.url("postgres"))
    }

    /// Makes another one; its name is ours, so it is not quoted.
    pub async fn create_database(&self, name: &str) -> Result<DatabaseUrl, String> {
        let fail = |e: sqlx::Error| format!("cannot make the database {name}: {e}");
        let mut connection = self.connect().await?;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&mut connection)
            .await
            .map_err(fail)?;
        connection.close().await.map_err(fail)?;
        Ok(DatabaseUrl::Postgres(self.url(name)))
    }

    /// Kills all its processes at once, as when the machine's power goes.
    pub fn kill(&mut self) -> Result<(), String> {
        let pid_file = self.folder.join("data/postmaster.pid");
        let text = std::fs::read_to_string(&pid_file)
            .map_err(|e| format!("cannot read {}: {e}", pid_file.display()))?;
        let postmaster: i32 = text
            .lines()
            .next()
            .and_then(|line| line.trim().parse().ok())
            .ok_or("postmaster.pid has no number")?;
        // Stopped first, so that it starts no new ones while its children are looked for.
        let _ = kill(Pid::from_raw(postmaster), Signal::SIGSTOP);
        let children = children_of(postmaster);
        for child in &children {
            let _ = kill(Pid::from_raw(*child), Signal::SIGKILL);
        }
        let _ = kill(Pid::from_raw(postmaster), Signal::SIGKILL);
        if let Some(stdin) = &mut self.keeper.stdin {
            stdin.write_all(b"keep\n").map_err(|e| format!("the server's keeper is gone: {e}"))?;
        }
        self.keeper.wait().map_err(|e| format!("cannot wait for the server: {e}"))?;
        // As long as one of them has its memory, another server does not start on the same data.
        let deadline = Instant::now() + GONE_WITHIN;
        while children.iter().any(|child| is_alive(*child)) {
            if Instant::now() > deadline {
                return Err(format!("processes of the server live on: {children:?}"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Starts it again after a [`PostgresServer::kill`].
    pub async fn start_again(&mut self) -> Result<(), String> {
        self.keeper = keep(&self.programs, &self.folder, &self.settings)?;
        self.connect().await.map(drop)
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://postgres@localhost/{database}?host={}", self.folder.display())
    }

    async fn connect(&self) -> Result<PgConnection, String> {
        let begun = Instant::now();
        loop {
            match PgConnection::connect(&self.url("postgres")).await {
                Ok(connection) => return Ok(connection),
                Err(error) if begun.elapsed() > READY => {
                    let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                    return Err(format!("PostgreSQL does not answer: {error}; it says: {log}"));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn make_cluster(programs: &Path, data: &Path) -> Result<(), String> {
    let mut initdb = as_server_user(programs.join("initdb"))?;
    initdb.arg("-D").arg(data).args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale"]);
    initdb.args(["--no-sync", "--wal-segsize=4"]);
    done(&mut initdb)
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    done(Command::new("cp").arg("-a").args([from, to]))
}

fn done(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().display().to_string();
    let output =
        command.stdin(Stdio::null()).output().map_err(|e| format!("cannot start {name}: {e}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{name} failed: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

fn keep(programs: &Path, folder: &Path, settings: &String) -> Result<Child, String> {
    as_server_user("sh")?
        .args(["-c", KEEPER, "sh"])
        .args([programs.as_os_str(), folder.as_os_str(), OsStr::new(settings)])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // What is typed at a terminal is not for it.
        .process_group(0)
        .spawn()
        .map_err(|e| format!("cannot start PostgreSQL: {e}"))
}

/// PostgreSQL does not run as root: then, whom it runs as.
fn server_user() -> Result<Option<User>, String> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| User::from_name(name).ok().flatten())
        .map(Some)
        .ok_or_else(|| "there is neither a user postgres nor nobody".into())
}

fn as_server_user(program: impl AsRef<OsStr>) -> Result<Command, String> {
    let mut command = Command::new(program);
    command.current_dir("/");
    if let Some(user) = server_user()? {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    Ok(command)
}

fn children_of(parent: i32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| state_and_parent(*pid).is_some_and(|(_, of)| of == parent))
        .collect()
}

/// One that only waits to be reaped holds nothing any more.
fn is_alive(pid: i32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != "Z")
}

fn state_and_parent(pid: i32) -> Option<(String, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything; state and parent follow it.
    let mut words = stat.rsplit_once(')')?.1.split_whitespace();
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
}
