//! Rules for a machine's spec that its types cannot say.

use super::{Isolation, MachineSpec, default_command, default_pids, default_workdir, vm};
use crate::Bytes;

const MIN_MEMORY: Bytes = Bytes::mib(4);
const MIN_DISK: Bytes = Bytes::mib(1);
const MAX_ENV: usize = 256;
const MAX_COMMAND: usize = 256;
const MAX_MOUNTS: usize = 32;
/// Where a mount would take away what the runtime itself puts there.
const RESERVED_PATHS: [&str; 4] = ["/", "/proc", "/sys", "/dev"];

pub(super) fn check(spec: &MachineSpec) -> Result<(), String> {
    if let Some(image) = &spec.image {
        check_url("image", image)?;
    }
    if spec.cpu.millis() < 10 {
        return Err("cpu: at least 0.01".into());
    }
    if spec.memory < MIN_MEMORY {
        return Err(format!("memory: at least {MIN_MEMORY}, not {}", spec.memory));
    }
    if spec.disk < MIN_DISK {
        return Err(format!("disk: at least {MIN_DISK}, not {}", spec.disk));
    }
    check_env(spec)?;
    check_mounts(spec)?;
    match spec.isolation {
        Isolation::Container => check_container(spec),
        Isolation::Vm => {
            only_of_a_container(spec)?;
            vm::check(spec)
        }
    }
}

fn check_container(spec: &MachineSpec) -> Result<(), String> {
    if spec.image.is_none() {
        return Err("image: a container needs one, as file:///path".into());
    }
    let of_a_vm = [
        ("boot", spec.boot.is_some()),
        ("disks", !spec.disks.is_empty()),
        ("ssh_keys", !spec.ssh_keys.is_empty()),
    ];
    for (field, is_given) in of_a_vm {
        if is_given {
            return Err(format!("{field}: a container has none; write isolation: \"vm\""));
        }
    }
    if spec.pids == 0 {
        return Err("pids: at least 1".into());
    }
    if spec.command.is_empty() || spec.command.len() > MAX_COMMAND {
        return Err(format!("command: a program and its arguments, at most {MAX_COMMAND}"));
    }
    for (i, word) in spec.command.iter().enumerate() {
        check_text(&format!("command[{i}]"), word)?;
    }
    check_path("workdir", &spec.workdir)
}

fn only_of_a_container(spec: &MachineSpec) -> Result<(), String> {
    let given = [
        ("command", spec.command != default_command()),
        ("workdir", spec.workdir != default_workdir()),
        ("pids", spec.pids != default_pids()),
    ];
    match given.into_iter().find(|(_, is_given)| *is_given) {
        Some((field, _)) => {
            Err(format!("{field}: a virtual machine has none; what it runs is in its disk"))
        }
        None => Ok(()),
    }
}

fn check_env(spec: &MachineSpec) -> Result<(), String> {
    if spec.env.len() > MAX_ENV {
        return Err(format!("env: at most {MAX_ENV} variables"));
    }
    for (key, value) in &spec.env {
        if key.is_empty() || key.contains(['=', '\0']) {
            return Err(format!("env: '{key}' is not a variable's name"));
        }
        check_text(&format!("env.{key}"), value)?;
    }
    Ok(())
}

fn check_mounts(spec: &MachineSpec) -> Result<(), String> {
    if spec.mounts.len() > MAX_MOUNTS {
        return Err(format!("mounts: at most {MAX_MOUNTS}"));
    }
    for (i, mount) in spec.mounts.iter().enumerate() {
        let field = format!("mounts[{i}].path");
        check_path(&field, &mount.path)?;
        let path = mount.path.trim_end_matches('/');
        if RESERVED_PATHS.iter().any(|r| path == r.trim_end_matches('/')) {
            return Err(format!("{field}: nothing can be mounted on '{}'", mount.path));
        }
        if spec.mounts[..i].iter().any(|m| m.path.trim_end_matches('/') == path) {
            return Err(format!("{field}: something is mounted on '{}' already", mount.path));
        }
    }
    Ok(())
}

/// Of an image or a kernel.
pub(super) fn check_url(field: &str, url: &str) -> Result<(), String> {
    if !url.strip_prefix("file://").unwrap_or_default().starts_with('/') {
        return Err(format!("{field}: write file:///path, not '{url}'"));
    }
    check_text(field, url)
}

pub(super) fn check_text(field: &str, text: &str) -> Result<(), String> {
    if text.contains('\0') { Err(format!("{field}: no zero byte can be in it")) } else { Ok(()) }
}

fn check_path(field: &str, path: &str) -> Result<(), String> {
    check_text(field, path)?;
    if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(format!("{field}: write an absolute path without '..', not '{path}'"));
    }
    Ok(())
}
