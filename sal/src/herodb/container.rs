//! The container of an engine: nothing but the node's programs, its settings and its data.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rhizome_model::ResourceId;
use rhizome_model::kind::{HerodbSpec, Restart};

use super::Driver;
use super::config::{CONF, DATA, USER, conf};
use super::engine::Engine;
use crate::error::{During, Result, shown};
use crate::files;
use crate::oci::{Bind, Bundle, Limits, Runtime};
use crate::program::{Place, Program};

/// The engine, what it forks to write its log anew, and its threads.
const PIDS: u32 = 128;
/// Where programs and libraries are besides /usr; mostly links into it.
const PROGRAMS: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
const LINKER_CACHE: &str = "/etc/ld.so.cache";
/// For an engine that is not below /usr.
const ELSEWHERE: &str = "/engine";

impl Driver {
    /// Writes the bundle; what is to be kept alive is the container of it.
    pub(super) fn container(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &HerodbSpec,
        engine: &Engine,
    ) -> Result<Program> {
        self.write_bundle(id, place, spec, engine)?;
        let what = format!("run '{}'", engine.name);
        Ok(Runtime::find(&self.node)?.container(place, what, Restart::Always))
    }

    pub(super) fn write_bundle(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &HerodbSpec,
        engine: &Engine,
    ) -> Result<()> {
        let bundle = Bundle {
            args: vec!["/bin/sh".into(), format!("{CONF}/start")],
            env: vec![format!("HOME={DATA}")],
            workdir: DATA.into(),
            hostname: id.name.to_string(),
            root: root(&place.dir),
            is_root_readonly: true,
            user: USER,
            netns: Path::new("/run/netns").join(self.programs.mark.netns(id)),
            cgroup: self.programs.cgroups.of_machine(id),
            mounts: mounts(place, engine),
            limits: limits(spec),
        };
        bundle.write(&place.dir)
    }
}

pub(super) fn limits(spec: &HerodbSpec) -> Limits {
    Limits { cpu: spec.cpu, memory: spec.memory, pids: PIDS }
}

/// The engine's program as its container names it.
pub(super) fn program(engine: &Engine) -> String {
    let ours = ["/usr", "/bin", "/sbin"].iter().any(|folder| engine.program.starts_with(folder));
    if ours { engine.program.display().to_string() } else { format!("{ELSEWHERE}/{}", engine.name) }
}

fn root(dir: &Path) -> PathBuf {
    dir.join("root")
}

fn mounts(place: &Place, engine: &Engine) -> Vec<Bind> {
    let bind = |source: PathBuf, path: &str, readonly| Bind { source, path: path.into(), readonly };
    let same = |path: &str| bind(path.into(), path, true);
    let mut mounts = vec![
        same("/usr"),
        bind(conf(&place.dir), CONF, true),
        bind(place.root.clone(), DATA, false),
    ];
    let folders = PROGRAMS.iter().map(|name| format!("/{name}"));
    mounts.extend(folders.filter(|f| is_folder(Path::new(f))).map(|f| same(&f)));
    if Path::new(LINKER_CACHE).is_file() {
        mounts.push(same(LINKER_CACHE));
    }
    let program = program(engine);
    if program.starts_with(ELSEWHERE) {
        let source = engine.program.canonicalize().unwrap_or_else(|_| engine.program.clone());
        mounts.push(bind(source, &program, true));
    }
    mounts
}

/// The empty root: links as the node has them, and places to mount on.
pub(super) fn make_root(dir: &Path) -> Result<()> {
    let root = root(dir);
    let open = |path: &Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .during(format_args!("open {}", shown(path)))
    };
    for folder in ["", "usr", "etc", "etc/herodb", "data", "proc", "dev", "sys", "engine"] {
        let path = root.join(folder);
        files::make_folder(&path)?;
        open(&path)?;
    }
    for name in PROGRAMS {
        let (there, here) = (Path::new("/").join(name), root.join(name));
        if is_folder(&there) {
            files::make_folder(&here)?;
        } else if let (Ok(target), false) = (fs::read_link(&there), here.is_symlink()) {
            symlink(target, &here).during(format_args!("link {}", shown(&here)))?;
        }
    }
    Ok(())
}

fn is_folder(path: &Path) -> bool {
    path.is_dir() && !path.is_symlink()
}
