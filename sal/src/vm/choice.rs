//! Which hypervisor a node has.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use rhizome_model::Code;

use super::config::{Accel, Driver};
use crate::error::{Result, SalError};
use crate::tool::{self, Tool};

const CLOUD_HYPERVISOR: &str = "cloud-hypervisor";
const QEMU: &str = "qemu-system-x86_64";
const WISH: &str = "RHIZOME_HYPERVISOR";
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Where hypervisors are, and which one is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// A path, or a name that is looked for on `PATH`.
    pub cloud_hypervisor: PathBuf,
    pub qemu: PathBuf,
    /// None: the best that works.
    pub wish: Option<Wish>,
}

/// A hypervisor that somebody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    CloudHypervisor,
    Qemu,
    QemuTcg,
}

/// The hypervisor of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub program: PathBuf,
    pub driver: Driver,
    pub version: String,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.driver, self.version)?;
        match self.driver {
            Driver::CloudHypervisor => Ok(()),
            Driver::Qemu { accel } => write!(f, " ({accel})"),
        }
    }
}

/// What the kernel gives to hypervisors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kvm {
    Absent,
    /// Without the processor's help: it runs guests that are made for it, and Linux as it is
    /// distributed is not.
    Software,
    Processor,
}

impl Programs {
    /// As `RHIZOME_HYPERVISOR` says: `cloud-hypervisor`, `qemu`, `qemu-tcg`, or nothing.
    pub fn from_env() -> Result<Self> {
        let wish = std::env::var_os(WISH).filter(|wish| !wish.is_empty());
        Ok(Self { wish: wish.as_deref().map(read_wish).transpose()?, ..Self::default() })
    }
}

impl Default for Programs {
    fn default() -> Self {
        Self { cloud_hypervisor: CLOUD_HYPERVISOR.into(), qemu: QEMU.into(), wish: None }
    }
}

fn read_wish(text: &OsStr) -> Result<Wish> {
    match text.to_str() {
        Some("cloud-hypervisor") => Ok(Wish::CloudHypervisor),
        Some("qemu") => Ok(Wish::Qemu),
        Some("qemu-tcg") => Ok(Wish::QemuTcg),
        _ => Err(SalError::new(
            Code::BadRequest,
            format!(
                "{WISH} is '{}': write cloud-hypervisor, qemu or qemu-tcg, or nothing at all",
                text.to_string_lossy()
            ),
        )),
    }
}

/// The best hypervisor that works here, or the one that is wanted.
pub fn choose(programs: &Programs) -> Result<Choice> {
    let chv = tool::find(programs.cloud_hypervisor.as_os_str());
    let qemu = tool::find(programs.qemu.as_os_str());
    let driver = decide(programs.wish, chv.is_ok(), qemu.is_ok(), kvm()).ok_or_else(missing)?;
    let program = match driver {
        Driver::CloudHypervisor => chv.map_err(|_| not_in_debian(programs))?,
        Driver::Qemu { .. } => qemu?,
    };
    let version = version(&program)?;
    Ok(Choice { program, driver, version })
}

/// None: nothing works here.
fn decide(wish: Option<Wish>, has_chv: bool, has_qemu: bool, kvm: Kvm) -> Option<Driver> {
    let qemu = |accel| Driver::Qemu { accel };
    let best = if kvm == Kvm::Processor { Accel::Kvm } else { Accel::Tcg };
    match wish {
        Some(Wish::CloudHypervisor) => Some(Driver::CloudHypervisor),
        Some(Wish::Qemu) => Some(qemu(best)),
        Some(Wish::QemuTcg) => Some(qemu(Accel::Tcg)),
        None if has_chv && kvm == Kvm::Processor => Some(Driver::CloudHypervisor),
        None if has_qemu => Some(qemu(best)),
        // Better than nothing: it runs guests that are made for such a kernel.
        None if has_chv && kvm == Kvm::Software => Some(Driver::CloudHypervisor),
        None => None,
    }
}

fn not_in_debian(programs: &Programs) -> SalError {
    SalError::new(
        Code::MissingTool,
        format!(
            "'{}' is not installed, and Debian has no package of it: put its release on PATH (https://github.com/cloud-hypervisor/cloud-hypervisor/releases)",
            programs.cloud_hypervisor.display()
        ),
    )
}

fn missing() -> SalError {
    SalError::new(
        Code::MissingTool,
        format!(
            "there is no hypervisor: put {CLOUD_HYPERVISOR} on PATH on a node with KVM, or install QEMU with 'apt-get install qemu-system-x86'"
        ),
    )
}

fn kvm() -> Kvm {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Kvm::Absent;
    }
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if has_virtualisation(&cpus) { Kvm::Processor } else { Kvm::Software }
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().filter_map(|line| line.strip_prefix("flags")).next();
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

/// A program, and when it was put there.
type Asked = (PathBuf, Option<SystemTime>);

/// Asked once per program, and again when it was replaced.
fn version(program: &Path) -> Result<String> {
    static KNOWN: Mutex<BTreeMap<Asked, String>> = Mutex::new(BTreeMap::new());
    let changed = program.metadata().and_then(|meta| meta.modified()).ok();
    let key = (program.to_owned(), changed);
    let known = || KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(version) = known().get(&key) {
        return Ok(version.clone());
    }
    let printed = Tool::new(program).arg("--version").timeout(Some(VERSION_TIMEOUT)).run()?;
    let version = read_version(&printed).to_owned();
    known().insert(key, version.clone());
    Ok(version)
}

/// "QEMU emulator version 7.2.22 (Debian …)", "cloud-hypervisor v53.0".
fn read_version(printed: &str) -> &str {
    let is_number =
        |word: &&str| word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit());
    let words = printed.lines().next().unwrap_or_default().split_whitespace();
    words.into_iter().find(is_number).unwrap_or("of an unknown version")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KVM: Driver = Driver::Qemu { accel: Accel::Kvm };
    const TCG: Driver = Driver::Qemu { accel: Accel::Tcg };
    const CHV: Driver = Driver::CloudHypervisor;

    #[test]
    fn the_best_that_works_is_chosen() {
        for (chv, qemu, kvm, chosen) in [
            (true, true, Kvm::Processor, Some(CHV)),
            (false, true, Kvm::Processor, Some(KVM)),
            (true, true, Kvm::Software, Some(TCG)),
            (true, false, Kvm::Software, Some(CHV)),
            (true, true, Kvm::Absent, Some(TCG)),
            (true, false, Kvm::Absent, None),
            (false, false, Kvm::Processor, None),
        ] {
            assert_eq!(decide(None, chv, qemu, kvm), chosen, "{chv} {qemu} {kvm:?}");
        }
    }

    #[test]
    fn a_wish_is_a_command() {
        let decide = |wish, kvm| decide(Some(wish), true, true, kvm);
        assert_eq!(decide(Wish::CloudHypervisor, Kvm::Software), Some(CHV));
        assert_eq!(decide(Wish::Qemu, Kvm::Software), Some(TCG));
        assert_eq!(decide(Wish::Qemu, Kvm::Processor), Some(KVM));
        assert_eq!(decide(Wish::QemuTcg, Kvm::Processor), Some(TCG));
        assert_eq!(read_wish("qemu-tcg".as_ref()).unwrap(), Wish::QemuTcg);
        assert_eq!(read_wish("xen".as_ref()).unwrap_err().code(), Code::BadRequest);
    }

    #[test]
    fn a_wish_that_cannot_be_met_names_the_package() {
        let programs = Programs {
            qemu: "/nowhere/qemu-system-x86_64".into(),
            wish: Some(Wish::Qemu),
            ..Programs::default()
        };
        let error = choose(&programs).unwrap_err();
        assert_eq!(error.code(), Code::MissingTool);
        assert!(error.to_string().contains("apt-get install qemu-system-x86'"), "{error}");
        let programs = Programs {
            cloud_hypervisor: "/nowhere/cloud-hypervisor".into(),
            wish: Some(Wish::CloudHypervisor),
            ..Programs::default()
        };
        let error = choose(&programs).unwrap_err();
        assert_eq!(error.code(), Code::MissingTool);
        assert!(error.to_string().contains("/releases"), "{error}");
    }

    #[test]
    fn versions_and_flags_are_read() {
        assert_eq!(
            read_version("QEMU emulator version 7.2.22 (Debian 1:7.2)\nCopyright"),
            "7.2.22"
        );
        assert_eq!(read_version("cloud-hypervisor v53.0-246-gae44\n"), "v53.0-246-gae44");
        assert_eq!(read_version(""), "of an unknown version");
        assert!(has_virtualisation("processor: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(!has_virtualisation("flags\t\t: fpu sse\nbugs: svm\n"));
        let choice = Choice { program: "q".into(), driver: TCG, version: "7.2.22".into() };
        assert_eq!(choice.to_string(), "qemu 7.2.22 (tcg)");
    }
}
