//! Power cuts: what was answered must be there afterwards.
//!
//! ```text
//!   boot ─▶ fill: submit, finish, say what was answered ─▶ power cut (SIGKILL to QEMU)
//!   boot, same disk ─▶ read: is all of it there?
//! ```
//!
//! SIGKILL of redis-server does not show this: what it wrote is safe in the kernel. The guest's kernel
//! dies together with the machine, and what it had not written to the disk is gone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rhizome_model::JobId;

use crate::machine::{Image, MODULES, Machine, System};

/// Who submits jobs that wait.
pub const SUBMITTERS: u64 = 3;
/// Who has jobs run to their end.
pub const FINISHER: u64 = SUBMITTERS;
pub const WAIT_QUEUE: &str = "volume";
pub const RUN_QUEUE: &str = "script";

const DISK: u64 = 256 << 20;
/// An emulated processor on a busy machine.
const BOOT: Duration = Duration::from_secs(90);
/// The words of the command line that say what to do.
const INIT: &str = r#"
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
exec < /dev/null > /dev/ttyS0 2>&1
for module in MODULES; do $b insmod /modules/$module.ko || echo "failed: $module"; done
$b mount -t ext4 /dev/vda /data || echo "failed: the disk cannot be mounted"
for word in $($b cat /proc/cmdline); do
    case $word in
    power.durability=*) durability=${word#*=} ;;
    power.command=*) command=${word#*=} ;;
    power.answered=*) answered=${word#*=} ;;
    esac
done
/bin/power-cut --redis-server /bin/redis-server --folder /data --durability $durability $command $answered
echo "failed: it ended"
$b poweroff -f
"#;

/// The n-th job of a writer.
pub fn id_of(writer: u64, n: u64) -> JobId {
    JobId(((u128::from(writer) + 1) << 64 | u128::from(n)).to_be_bytes())
}

/// Programs that are needed, as they are on this machine.
#[derive(Debug, Clone)]
pub struct Parts {
    pub kernel: PathBuf,
    /// Folder of the kernel's modules.
    pub modules: PathBuf,
    pub busybox: PathBuf,
    pub redis_server: PathBuf,
    /// Our program `power-cut`.
    pub program: PathBuf,
}

/// What came of one power cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Jobs whose submission or end was answered.
    pub answered: u64,
    /// Of those, the ones that were not there afterwards.
    pub missing: u64,
}

impl Parts {
    pub fn image(&self, folder: &Path) -> anyhow::Result<Image> {
        let mut system = System::new(&self.busybox, &INIT.replace("MODULES", &MODULES.join(" ")))?;
        for module in MODULES {
            let path = self.modules.join(format!("{module}.ko"));
            let content = std::fs::read(&path);
            let content = content.with_context(|| format!("cannot read {}", path.display()))?;
            system.file(&format!("modules/{module}.ko"), content);
        }
        system.program("redis-server", &self.redis_server)?;
        system.program("power-cut", &self.program)?;
        let initramfs = folder.join("initramfs");
        system.write(&initramfs)?;
        Ok(Image { kernel: self.kernel.clone(), initramfs })
    }
}

/// Fills a new disk for so long, cuts the power, and looks what is left.
pub fn cut(image: &Image, folder: &Path, durability: &str, after: Duration) -> anyhow::Result<Cut> {
    let disk = new_disk(folder)?;
    let durability = format!("power.durability={durability}");
    let mut machine = Machine::start(image, &disk, &format!("{durability} power.command=fill"))?;
    let ready = machine.hear(BOOT, |line| line == "ready" || line.starts_with("failed"));
    ensure!(ready.as_deref() == Some("ready"), "it does not start: {:#?}", machine.said);
    // Nothing that it says ends this; only the time does.
    machine.hear(after, |line| line.starts_with("failed"));
    let said = machine.cut_power()?;
    ensure!(!said.iter().any(|line| line.starts_with("failed")), "{said:#?}");
    let answered = answered(&said);

    let list: Vec<String> = answered.iter().map(u64::to_string).collect();
    let words = format!("{durability} power.command=read power.answered={}", list.join(","));
    let mut machine = Machine::start(image, &disk, &words)?;
    let is_over = |line: &str| line.starts_with("missing ") || line.starts_with("failed");
    let over = machine.hear(BOOT, is_over);
    let missing = over.as_deref().and_then(|line| line.strip_prefix("missing ")?.parse().ok());
    let missing = missing.with_context(|| format!("it cannot be read: {:#?}", machine.said))?;
    Ok(Cut { answered: answered.iter().sum(), missing })
}

fn new_disk(folder: &Path) -> anyhow::Result<PathBuf> {
    let disk = folder.join("disk");
    // A sparse file.
    std::fs::File::create(&disk)?.set_len(DISK)?;
    let made = Command::new("/sbin/mkfs.ext4").args(["-q", "-F"]).arg(&disk).status();
    ensure!(made.context("mkfs.ext4 (e2fsprogs)")?.success(), "mkfs.ext4");
    Ok(disk)
}

/// How far each writer came, by what the machine said until the end. The last line may be half.
fn answered(said: &[String]) -> Vec<u64> {
    let mut answered = vec![0; usize::try_from(FINISHER).unwrap_or_default() + 1];
    let whole = said.len().saturating_sub(1);
    for line in &said[..whole] {
        let words: Vec<_> = line.split(' ').collect();
        if let ["answered", writer, n] = words[..]
            && let (Ok(writer), Ok(n)) = (writer.parse::<usize>(), n.parse())
            && let Some(of_it) = answered.get_mut(writer)
        {
            *of_it = n;
        }
    }
    answered
}
