//! `rhizome image`: builds the image that a node boots from.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use rhizome_efi::{EfiError, MAX_BYTES, STUB, Uki, Written};
use rhizome_model::{Code, Failure};
use serde_json::json;

use crate::cli::Globals;
use crate::error::{Error, internal, misuse};
use crate::output;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    rhizome image build --kernel /boot/vmlinuz-6.1.0-amd64 --root node/ --cmdline console=ttyS0 --out node.img\n  \
    rhizome image build --kernel vmlinuz --initrd initrd.img --uki-only --out node.efi")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Build a disk image that UEFI boots: kernel, initramfs and command line as one program
    /// (a Unified Kernel Image) on an EFI system partition. The same inputs give the same bytes.
    Build(Build),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    rhizome image build --kernel vmlinuz --root node/ --cmdline console=ttyS0 --out node.img")]
struct Build {
    /// The kernel: a bzImage for x86-64, such as Debian's /boot/vmlinuz-….
    #[arg(long, value_name = "PATH")]
    kernel: PathBuf,
    /// The folder that becomes the initramfs; the kernel starts its /init. All of it belongs to
    /// root in the image.
    #[arg(long, value_name = "DIR", required_unless_present = "initrd", conflicts_with = "initrd")]
    root: Option<PathBuf>,
    /// An initramfs that is made already: cpio, compressed or not.
    #[arg(long, value_name = "PATH")]
    initrd: Option<PathBuf>,
    /// What the kernel is told.
    #[arg(long, value_name = "TEXT", default_value = "")]
    cmdline: String,
    /// Where the image goes; it is replaced when the new one is complete.
    #[arg(long, value_name = "IMAGE")]
    out: PathBuf,
    /// Write the EFI program alone, without a disk around it.
    #[arg(long)]
    uki_only: bool,
    /// Systemd's EFI stub, from Debian's package systemd-boot-efi.
    #[arg(long, value_name = "PATH", default_value = STUB)]
    stub: PathBuf,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let What::Build(build) = args.what;
    let form = if build.uki_only { "uki" } else { "disk" };
    let out = build.out.clone();
    // Reading, hashing and writing some hundred MiB is no work for the threads that serve.
    let written = tokio::task::spawn_blocking(move || build.run())
        .await
        .map_err(|e| internal("the build ended in a way it must not", &e))??;
    if globals.json {
        output::json(&json!({
            "image": out,
            "form": form,
            "bytes": written.bytes,
            "blake3": written.blake3,
        }));
    } else {
        output::line(format!("image   {}", out.display()));
        output::line(format!("size    {} ({} bytes)", mebibytes(written.bytes), written.bytes));
        output::line(format!("blake3  {}", written.blake3));
    }
    Ok(ExitCode::SUCCESS)
}

impl Build {
    fn run(self) -> Result<Written, Failure> {
        let stub = rhizome_efi::read_stub(&self.stub).map_err(refuse)?;
        let kernel = read("kernel", &self.kernel)?;
        let initrd = self.initramfs()?;
        let uki = Uki {
            stub: &stub,
            osrel: &os_release(),
            cmdline: &self.cmdline,
            kernel: &kernel,
            initrd: &initrd,
        };
        let uki = uki.assemble().map_err(refuse)?;
        output::note(format!("program    {}", mebibytes(uki.len() as u64)));
        let written = if self.uki_only {
            rhizome_efi::write_uki(&uki, &self.out)
        } else {
            rhizome_efi::write_disk(&uki, &self.out)
        };
        written.map_err(refuse)
    }

    fn initramfs(&self) -> Result<Vec<u8>, Failure> {
        let root = match (&self.root, &self.initrd) {
            (Some(root), _) => root,
            (None, Some(initrd)) => return read("initrd", initrd),
            (None, None) => return Err(misuse("give --root DIR or --initrd PATH")),
        };
        let mut archive = Vec::new();
        rhizome_efi::initramfs(root, &mut archive).map_err(refuse)?;
        let size = mebibytes(archive.len() as u64);
        output::note(format!("initramfs  {size} of {}", root.display()));
        Ok(archive)
    }
}

fn read(what: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let limit = usize::try_from(MAX_BYTES).unwrap_or(usize::MAX);
    let bytes = super::read_input(path, limit)?;
    let size = mebibytes(bytes.len() as u64);
    output::note(format!("{what:<9}  {size} of {}", path.display()));
    Ok(bytes)
}

/// What boot menus show.
fn os_release() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("ID=rhizome\nNAME=Rhizome\nVERSION_ID={version}\nPRETTY_NAME=\"Rhizome {version}\"\n")
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn refuse(error: EfiError) -> Failure {
    match &error {
        EfiError::Unusable { .. } => misuse(error.to_string()),
        EfiError::Unreadable { source, .. } => misuse(format!("{error}: {source}")),
        EfiError::TooLarge { .. } => Failure::new(Code::TooLarge, error.to_string()),
        EfiError::Unwritable { source, .. } => internal(&error.to_string(), source),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    async fn build(args: &[&str]) -> Result<ExitCode, Error> {
        let cli = Cli::try_parse_from([&["rhizome", "image", "build"], args].concat());
        let cli = cli.map_err(|e| Error::from_clap(&e))?;
        cli.command.run(&cli.globals).await
    }

    #[tokio::test]
    async fn a_missing_stub_names_its_package() {
        let error =
            build(&["--kernel", "k", "--initrd", "i", "--out", "o", "--stub", "/nonexistent"])
                .await
                .unwrap_err();
        assert_eq!(error.exit, 2);
        let message = &error.failures[0].message;
        assert!(
            message.contains("/nonexistent") && message.contains("systemd-boot-efi"),
            "{message}"
        );
    }

    #[tokio::test]
    async fn one_initramfs_and_no_more() {
        for initramfs in [&[][..], &["--root", "r", "--initrd", "i"]] {
            let args = [&["--kernel", "k", "--out", "o"], initramfs].concat();
            assert_eq!(build(&args).await.unwrap_err().exit, 2, "{args:?}");
        }
    }

    #[tokio::test]
    async fn what_is_no_stub_is_refused_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (stub, out) = (folder.path().join("stub"), folder.path().join("out"));
        std::fs::write(&stub, "070701").unwrap();
        let (stub, path) = (stub.to_str().unwrap(), out.to_str().unwrap());
        let error = build(&["--kernel", stub, "--initrd", stub, "--out", path, "--stub", stub])
            .await
            .unwrap_err();
        assert!(error.failures[0].message.contains("the EFI stub"), "{error:?}");
        assert_eq!((error.exit, out.exists()), (2, false));
    }

    /// As little of a kernel as is looked at; efi's own tests boot a real one.
    fn kernel() -> Vec<u8> {
        let mut kernel = vec![0; 0x300];
        for (at, bytes) in [(0, &b"MZ"[..]), (0x1fe, b"\x55\xaaxxHdrS\x0f\x02"), (0x236, b"\x7f")] {
            kernel[at..at + bytes.len()].copy_from_slice(bytes);
        }
        kernel
    }

    #[tokio::test]
    async fn the_same_inputs_give_the_same_image() {
        if !Path::new(STUB).exists() {
            output::note(format!("SKIPPED: {STUB} is missing: make setup"));
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(at("kernel"), kernel()).unwrap();
        std::fs::create_dir(at("root")).unwrap();
        std::os::unix::fs::symlink("bin/busybox", at("root/init")).unwrap();
        for (form, size) in [(&[][..], 66 << 20), (&["--uki-only"], 0)] {
            let mut images = Vec::new();
            for out in [at("one"), at("two")] {
                let args = ["--kernel", &at("kernel"), "--root", &at("root"), "--out", &out];
                build(&[&args, form].concat()).await.unwrap();
                images.push(std::fs::read(out).unwrap());
            }
            assert!(images[0] == images[1] && images[0].len() >= size.max(0x300));
            assert_eq!(images[0].starts_with(b"MZ"), !form.is_empty());
        }
    }
}
