//! What must be on the machine before anything is started.

use rhizome_model::{Code, Failure};

/// Programs and the Debian packages that bring them. A container runtime is asked for by the SAL,
/// which knows which one fits this kernel.
const PROGRAMS: [(&str, &str); 4] = [
    ("redis-server", "redis-server"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
];

pub fn check() -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        let message = "`rhizome dev` makes networks, mounts and machines: run it as root";
        return Err(Failure::new(Code::Unauthorised, message));
    }
    for (program, package) in PROGRAMS {
        if !on_path(program) {
            let message = format!("{program} is not installed: apt-get install {package}");
            return Err(Failure::new(Code::MissingTool, message));
        }
    }
    Ok(())
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
