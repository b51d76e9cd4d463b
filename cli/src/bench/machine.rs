//! `rhizome bench machine`: from a script that coord has received to a machine that runs.
//!
//! ```text
//!   container:  submitted ──────────────────────────────────▶ its program runs      container_p50_ms
//!   floor:                     the OCI runtime alone, on the same bundle             container_floor_p50_ms
//!   vm:         submitted ─────────▶ hypervisor starts ─────▶ boot has returned
//!                        └─ own share ─┘└─ hypervisor's own ─┘                       own_share_p50_ms
//! ```
//!
//! On a system of our own, one machine at a time, each deleted before the next. The guest is a
//! program of a few bytes that says a line and halts: what is measured is never a kernel's boot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use rhizome_guest::PvhEnd;
use rhizome_model::api::DeploymentView;
use rhizome_model::{Code, Failure};
use serde_json::{Value, json};

use super::submit::percentile;
use super::system::{OwnSystem, Submitter};
use crate::cli::Globals;
use crate::coord::Session;
use crate::error::{Error, internal};
use crate::output;

/// Machines before anything is measured: the first one unpacks the image.
const WARMUP: usize = 2;
const CONTAINER: &str = "bench-container";
const VM: &str = "bench-vm";

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome bench machine --json")]
pub struct Args {
    /// Machines of each sort that are measured.
    #[arg(long, default_value_t = 20, value_name = "N")]
    count: usize,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let mut own = OwnSystem::start().await?;
    let result = measure(&args, &own).await;
    own.stop().await;
    let figures = result?;
    if globals.json {
        output::json(&figures.json());
    } else {
        for (key, value) in figures.json().as_object().into_iter().flatten() {
            output::line(format_args!("{key:>24}  {value}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

struct Figures {
    driver: String,
    own_share: Vec<Duration>,
    hypervisor: Vec<Duration>,
    container: Vec<Duration>,
    floor: Vec<Duration>,
}

impl Figures {
    fn json(&self) -> Value {
        json!({
            "driver": self.driver,
            "own_share_p50_ms": percentile(&self.own_share, 0.5),
            "own_share_p99_ms": percentile(&self.own_share, 0.99),
            "hypervisor_p50_ms": percentile(&self.hypervisor, 0.5),
            "container_p50_ms": percentile(&self.container, 0.5),
            "container_p99_ms": percentile(&self.container, 0.99),
            "container_floor_p50_ms": percentile(&self.floor, 0.5),
        })
    }
}

async fn measure(args: &Args, own: &OwnSystem) -> Result<Figures, Error> {
    let session = Session::open(&own.globals())?;
    let files = own.folder().join("bench");
    output::note("containers");
    let (mut container, mut floor) = (Vec::new(), Vec::new());
    let script = container_script(&image(&files)?);
    let mut submitter = Submitter::open(&session, CONTAINER, &script).await?;
    for round in 0..args.count.max(1) + WARMUP {
        let view = submitter.deploy().await?;
        let took = started(&view)?;
        let alone = runtime_alone(&machine_folder(own, &view, CONTAINER)?, &files)?;
        submitter.delete().await?;
        if round >= WARMUP {
            container.push(took);
            floor.push(alone);
        }
    }
    output::note("virtual machines");
    let (mut own_share, mut hypervisor) = (Vec::new(), Vec::new());
    let mut driver = String::new();
    let mut submitter = Submitter::open(&session, VM, &vm_script(&kernel(&files)?)).await?;
    for round in 0..args.count.max(1) + WARMUP {
        let view = submitter.deploy().await?;
        let booted = Booted::read(&machine_folder(own, &view, VM)?)?;
        driver = status(&view)?["driver"].as_str().unwrap_or_default().to_owned();
        submitter.delete().await?;
        if round >= WARMUP {
            own_share.push(since(view.submitted_at, booted.at)?.saturating_sub(booted.took));
            hypervisor.push(booted.took);
        }
    }
    for sorted in [&mut own_share, &mut hypervisor, &mut container, &mut floor] {
        sorted.sort_unstable();
    }
    Ok(Figures { driver, own_share, hypervisor, container, floor })
}

fn container_script(image: &Path) -> String {
    let image = format!("file://{}", image.display());
    format!(
        "machine(\"m\", #{{ image: {image:?}, cpu: 0.1, memory: \"32MiB\", disk: \"8MiB\",
            command: [\"/busybox\", \"sleep\", \"1000000\"] }});"
    )
}

fn vm_script(kernel: &Path) -> String {
    let kernel = format!("file://{}", kernel.display());
    format!(
        "machine(\"m\", #{{ isolation: \"vm\", cpu: 0.1, memory: \"64MiB\",
            boot: #{{ kernel: {kernel:?}, ready: \"started\" }} }});"
    )
}

/// A folder with one program in it.
fn image(files: &Path) -> Result<PathBuf, Failure> {
    let image = files.join("image");
    fs::create_dir_all(&image).map_err(|e| internal("cannot make the bench's image", &e))?;
    let found = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
    let busybox = found.ok_or_else(|| {
        let message = "the bench's containers run busybox: install the package busybox-static";
        Failure::new(Code::MissingTool, message)
    })?;
    fs::copy(busybox, image.join("busybox")).map_err(|e| internal("cannot copy busybox", &e))?;
    Ok(image)
}

fn kernel(files: &Path) -> Result<PathBuf, Failure> {
    let kernel = files.join("guest");
    fs::write(&kernel, rhizome_guest::pvh("bench\n", PvhEnd::Halt))
        .map_err(|e| internal("cannot write the bench's guest", &e))?;
    Ok(kernel)
}

fn status(view: &DeploymentView) -> Result<&Value, Failure> {
    let resource = view.tasks.first().and_then(|task| task.resources.first());
    resource
        .and_then(|r| r.status.as_ref())
        .ok_or_else(|| Failure::new(Code::Internal, format!("{} has no machine", view.deployment)))
}

/// From the submission until the program ran; by the clock of this machine, to the millisecond.
fn started(view: &DeploymentView) -> Result<Duration, Failure> {
    let at = status(view)?["started_at"].as_i64().unwrap_or_default();
    since(view.submitted_at, at)
}

fn since(submitted: i64, at: i64) -> Result<Duration, Failure> {
    let ms =
        u64::try_from(at - submitted).map_err(|e| internal("a machine began too early", &e))?;
    Ok(Duration::from_millis(ms))
}

/// What is known of a running machine of the bench's node.
fn machine_folder(own: &OwnSystem, view: &DeploymentView, name: &str) -> Result<PathBuf, Failure> {
    let machines = own.folder().join("node-1/run/machines");
    let folder = machines.join(format!("{}.{name}.m", view.deployment.account));
    if folder.is_dir() {
        Ok(folder)
    } else {
        Err(Failure::new(Code::Internal, format!("there is no {}", folder.display())))
    }
}

/// How long the hypervisor itself took, and when it was done (Unix milliseconds).
struct Booted {
    took: Duration,
    at: i64,
}

impl Booted {
    fn read(machine: &Path) -> Result<Self, Failure> {
        let path = machine.join("booted.json");
        let text = fs::read_to_string(&path)
            .map_err(|e| internal("cannot read when the machine booted", &e))?;
        let value: Value =
            serde_json::from_str(&text).map_err(|e| internal("when the machine booted", &e))?;
        let took = Duration::from_micros(value["took_us"].as_u64().unwrap_or_default());
        Ok(Self { took, at: value["at"].as_i64().unwrap_or_default() })
    }
}

/// The container runtime by itself, with the bundle of a machine that runs, in a control group of
/// its own.
fn runtime_alone(bundle: &Path, files: &Path) -> Result<Duration, Failure> {
    let ours = files.join("bundle");
    let root = files.join("runtime");
    let config = alone(bundle)?;
    fs::create_dir_all(&ours)
        .and_then(|()| fs::write(ours.join("config.json"), config))
        .map_err(|e| internal("cannot write the bench's bundle", &e))?;
    let runtime = |args: &[&str]| {
        let mut command = std::process::Command::new("runc");
        command.arg("--root").arg(&root).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status().map_err(|e| internal("cannot start runc", &e))?;
        if status.success() {
            Ok(())
        } else {
            Err(Failure::new(Code::ToolFailed, format!("runc {}: {status}", args.join(" "))))
        }
    };
    let bundle = ours.display().to_string();
    let begun = Instant::now();
    runtime(&["run", "--detach", "--bundle", &bundle, CONTAINER])?;
    let took = begun.elapsed();
    runtime(&["delete", "--force", CONTAINER])?;
    Ok(took)
}

fn alone(bundle: &Path) -> Result<Vec<u8>, Failure> {
    let text = fs::read(bundle.join("config.json"))
        .map_err(|e| internal("cannot read a machine's bundle", &e))?;
    let mut config: Value =
        serde_json::from_slice(&text).map_err(|e| internal("a machine's bundle", &e))?;
    config["linux"]["cgroupsPath"] = json!("/rhizome-bench");
    serde_json::to_vec(&config).map_err(|e| internal("write a bundle", &e))
}
