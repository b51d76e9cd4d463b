//! A machine whose power can be cut: what its kernel had not yet written to the disk is gone.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cpio::newc;

const MEMORY_MIB: &str = "512";
/// What the disk and its controller need, each after what it needs; the file system is in the kernel.
pub const MODULES: [&str; 6] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
];

/// What a machine is started from.
#[derive(Debug, Clone)]
pub struct Image {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

/// Programs and files of a system that runs from memory.
pub struct System {
    files: Vec<(String, Vec<u8>)>,
}

impl System {
    /// `init` is a script for busybox.
    pub fn new(busybox: &Path, init: &str) -> anyhow::Result<Self> {
        let mut system = Self { files: Vec::new() };
        system.file("init", format!("#!/bin/busybox sh\n{init}").into_bytes());
        system.file("bin/busybox", read(busybox)?);
        Ok(system)
    }

    /// Under its own path, so that the loader finds it.
    pub fn file(&mut self, path: &str, content: Vec<u8>) {
        let path = path.trim_start_matches('/').to_owned();
        if !self.files.iter().any(|(there, _)| *there == path) {
            self.files.push((path, content));
        }
    }

    /// The program as `/bin/NAME`, without what only a debugger wants, and the libraries it needs.
    pub fn program(&mut self, name: &str, program: &Path) -> anyhow::Result<()> {
        let stripped = tempfile::NamedTempFile::new()?;
        let mut strip = Command::new("strip");
        let status = strip.arg("-o").arg(stripped.path()).arg(program).status();
        ensure!(status.context("strip (binutils)")?.success(), "strip {}", program.display());
        self.file(&format!("bin/{name}"), read(stripped.path())?);
        let ldd = Command::new("ldd").arg(program).output().context("ldd")?;
        ensure!(ldd.status.success(), "ldd {}", program.display());
        for word in String::from_utf8_lossy(&ldd.stdout).split_whitespace() {
            if word.starts_with('/') {
                self.file(word, read(Path::new(word))?);
            }
        }
        Ok(())
    }

    /// As an initramfs.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut out = std::io::BufWriter::new(std::fs::File::create(path)?);
        let mut number = 0;
        let mut folders = std::collections::BTreeSet::new();
        for (name, _) in &self.files {
            folders.extend(Path::new(name).ancestors().skip(1).map(Path::to_owned));
        }
        folders.extend(["dev", "proc", "sys", "data"].map(PathBuf::from));
        for folder in folders.iter().filter(|folder| !folder.as_os_str().is_empty()) {
            number += 1;
            let name = folder.to_string_lossy();
            let entry = newc::Builder::new(&name).ino(number).nlink(2).mode(0o040_755);
            entry.write(&mut out, 0).finish()?;
        }
        for (name, content) in &self.files {
            number += 1;
            let entry = newc::Builder::new(name).ino(number).nlink(1).mode(0o100_755);
            let mut entry = entry.write(&mut out, u32::try_from(content.len())?);
            entry.write_all(content)?;
            entry.finish()?;
        }
        newc::trailer(&mut out)?;
        Ok(out.flush()?)
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A machine that runs; its power is cut when it is dropped.
pub struct Machine {
    process: Child,
    lines: mpsc::Receiver<String>,
    /// All that it said.
    pub said: Vec<String>,
}

impl Machine {
    /// `words` end up on the kernel's command line.
    pub fn start(image: &Image, disk: &Path, words: &str) -> anyhow::Result<Self> {
        // A flush of the guest is a flush of the file; what it only wrote is in our memory at least,
        // which a real disk would not promise.
        let drive = format!("file={},format=raw,cache=writeback,if=virtio", disk.display());
        let mut process = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-machine", "pc", "-accel", "tcg", "-m", MEMORY_MIB])
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(&image.initramfs)
            .args(["-append", &format!("console=ttyS0 quiet panic=-1 {words}")])
            .args(["-drive", &drive, "-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        let (said, lines) = mpsc::channel();
        let serial = process.stdout.take().context("the serial line")?;
        std::thread::spawn(move || {
            for line in BufReader::new(serial).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                if said.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { process, lines, said: Vec::new() })
    }

    /// Listens until a line says so; that line. None: the time is over, or the machine is off.
    pub fn hear(&mut self, within: Duration, is_it: impl Fn(&str) -> bool) -> Option<String> {
        let end = Instant::now() + within;
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            self.said.push(line.clone());
            if is_it(&line) {
                return Some(line);
            }
        }
        None
    }

    /// Pulls the plug. What it said until then is heard to its end.
    pub fn cut_power(mut self) -> anyhow::Result<Vec<String>> {
        self.process.kill()?;
        self.process.wait()?;
        self.said.extend(self.lines.iter());
        Ok(std::mem::take(&mut self.said))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail when its power was cut already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether somebody may run it.
pub fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
