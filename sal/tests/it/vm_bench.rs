//! A virtual machine for one test, which plays the part of its shim: it starts the start, reads the
//! serial line, and is the hypervisor's parent when that has gone.

use std::fs;
use std::io::Read;
use std::net::Ipv6Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rhizome_guest::{PvhEnd, pvh};
use rhizome_sal::vm::{self, Choice, Disk, Net, Programs, Ready, Vm, VmConfig, Wish, choose};

use crate::world::{SHIM, names, processes};

/// What the small guest prints.
pub const GREETING: &str = "greetings from the guest";
const PATIENCE: Duration = Duration::from_secs(10);

/// The hypervisor, or why the test is skipped.
pub fn hypervisor(wish: Wish) -> Option<Choice> {
    match choose(&Programs { wish: Some(wish), ..Programs::default() }) {
        Ok(choice) => {
            println!("with {choice}");
            Some(choice)
        }
        Err(error) => {
            println!("SKIPPED: {error}");
            None
        }
    }
}

pub struct Bench {
    pub folder: tempfile::TempDir,
    pub dir: PathBuf,
    pub config: VmConfig,
    printed: Arc<Mutex<String>>,
    stop: Arc<AtomicBool>,
}

impl Bench {
    pub fn new(choice: &Choice, end: PvhEnd) -> Self {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        fs::write(&kernel, pvh(GREETING, end)).unwrap();
        // Longer than the path of a socket may be.
        let dir = folder.path().join("a-long-name.".repeat(10));
        fs::create_dir(&dir).unwrap();
        let config = VmConfig {
            name: "1/demo/vm, or so".into(),
            uuid: vm::uuid_of("1/demo/vm"),
            program: choice.program.clone(),
            driver: choice.driver,
            kernel,
            initramfs: None,
            cmdline: String::new(),
            vcpus: 1,
            memory: 64 << 20,
            disks: Vec::new(),
            net: None,
            ready: Ready::Started,
            ready_ms: 60_000,
            disk_folders: Vec::new(),
            groups: Vec::new(),
        };
        let bench = Self { folder, dir, config, printed: Arc::default(), stop: Arc::default() };
        bench.listen();
        bench
    }

    /// An empty disk of 4 MiB.
    pub fn disk(&self, serial: &str) -> Disk {
        let path = self.dir.join(format!("{serial}.img"));
        fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
        Disk { path, serial: serial.into(), readonly: false }
    }

    /// Reads what the guest prints, whenever there is a guest.
    fn listen(&self) {
        let (dir, printed, stop) = (self.dir.clone(), self.printed.clone(), self.stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let soon = Instant::now() + Duration::from_millis(20);
                let Ok(mut line) = vm::connect(&dir, vm::SERIAL, soon) else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = line.read(&mut buffer) {
                    printed.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
                }
            }
        });
    }

    /// Nobody reads what the guest prints.
    pub fn deaf(&self) {
        self.stop.store(true, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(50));
    }

    pub fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    #[track_caller]
    pub fn until_printed(&self, text: &str) {
        self.until(text, || self.printed().contains(text));
    }

    #[track_caller]
    pub fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "not so: {what}; printed: {}", self.printed());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn run(&self, verb: &str) -> Output {
        let status = self.begin(verb).wait().unwrap();
        let [stdout, stderr] = self.outputs().map(|path| fs::read(path).unwrap());
        Output { status, stdout, stderr }
    }

    pub fn begin(&self, verb: &str) -> Child {
        let json = serde_json::to_vec(&self.config).unwrap();
        fs::write(self.dir.join("vm.json"), json).unwrap();
        let [stdout, stderr] = self.outputs().map(|path| fs::File::create(path).unwrap());
        Command::new(SHIM)
            .args(["machine-vm", verb])
            .arg(&self.dir)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap()
    }

    /// What the start and its hypervisor had to say.
    pub fn errors(&self) -> String {
        fs::read_to_string(&self.outputs()[1]).unwrap()
    }

    /// Files, since a hypervisor holds its output open for as long as it lives.
    fn outputs(&self) -> [PathBuf; 2] {
        ["stdout", "stderr"].map(|name| self.folder.path().join(name))
    }

    /// Starts it, and answers the hypervisor's process.
    #[track_caller]
    pub fn start(&self) -> Pid {
        let output = self.run("start");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}; printed: {}", self.printed());
        Pid::from_raw(fs::read_to_string(self.dir.join("pid")).unwrap().trim().parse().unwrap())
    }

    /// Fails to start it, and answers what was said about that.
    #[track_caller]
    pub fn fail_to_start(&self) -> String {
        let output = self.run("start");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        let log = fs::read_to_string(self.dir.join("runtime.log")).unwrap();
        let line: serde_json::Value = serde_json::from_str(&log).unwrap();
        assert_eq!(line["level"], "error");
        let message = line["msg"].as_str().unwrap().to_owned();
        assert!(errors.contains(&message), "{errors}");
        fs::remove_file(self.dir.join("runtime.log")).unwrap();
        self.assert_nothing_is_left();
        message
    }

    /// How the guest ended, as a shim asks for it: the status, and the words.
    pub fn verdict(&self) -> (i32, String) {
        let output = self.run("ended");
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }

    pub fn vm(&self) -> Vm {
        Vm::open(&self.dir).unwrap()
    }

    /// Its end, as a parent sees it.
    #[track_caller]
    pub fn reap(&self, pid: Pid) -> WaitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match waitpid(pid, Some(WaitPidFlag::WNOHANG)).unwrap() {
                WaitStatus::StillAlive if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                status => {
                    assert_ne!(status, WaitStatus::StillAlive, "printed: {}", self.printed());
                    return status;
                }
            }
        }
    }

    /// No process, and in the folder nothing but what was put there.
    #[track_caller]
    pub fn assert_nothing_is_left(&self) {
        let left = || {
            let mut left = names(&self.dir);
            left.retain(|name| name != "vm.json" && !name.ends_with(".img"));
            left.extend(hypervisors(&self.dir));
            left
        };
        let deadline = Instant::now() + Duration::from_secs(2);
        while !left().is_empty() {
            assert!(Instant::now() < deadline, "left: {:#?}", left());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A program that does something to the hypervisor which it runs.
    pub fn wrap(&mut self, script: &str) {
        let path = self.folder.path().join("wrapper");
        let real = self.config.program.display();
        fs::write(&path, format!("#!/bin/sh\nreal={real}\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self.config.program = path;
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for line in hypervisors(&self.dir) {
            let pid = line.split(' ').next().unwrap().parse().unwrap();
            // It may end by itself just now.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            let _ = waitpid(Pid::from_raw(pid), None);
        }
    }
}

/// Processes whose folder is this one, or that name it.
pub fn hypervisors(dir: &Path) -> Vec<String> {
    let mut found = processes(&dir.to_string_lossy());
    for pid in names(Path::new("/proc")).iter().filter(|n| n.parse::<u32>().is_ok()) {
        if fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir) {
            found.push(format!("{pid} in the folder"));
        }
    }
    found
}

/// A TAP of the node with a network of its own behind it.
pub struct Tap {
    pub net: Net,
    pub gateway: Ipv6Addr,
    pub guest: Ipv6Addr,
}

impl Tap {
    pub fn new() -> Self {
        let id = std::process::id();
        let net = Net { tap: format!("rzt{id}"), mac: "02:72:7a:00:00:01".into(), mtu: 1400 };
        let address =
            |host| Ipv6Addr::new(0xfd52, 0x5a00, (id >> 16) as u16, id as u16, 0, 0, 0, host);
        let tap = Self { net, gateway: address(1), guest: address(5) };
        let name = &tap.net.tap;
        ip(&format!("tuntap add dev {name} mode tap"));
        ip(&format!("link set {name} mtu 1400 up"));
        ip(&format!("address add {}/64 dev {name} nodad", tap.gateway));
        tap
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.net.tap]).status();
    }
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().unwrap();
    assert!(status.success(), "ip {args}");
}
