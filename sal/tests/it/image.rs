//! Images: imported once, cheap to use again, and refused when they are not what they should be.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rhizome_model::{Code, ResourceId};
use serde_json::json;
use tar::{Builder, EntryType, Header};

use crate::world::{World, assert_code, id, names};

#[tokio::test]
async fn a_second_machine_takes_no_space_and_little_time() {
    let world = World::new().await;
    let spec = world.script("sleep 1000");
    world.machines.ensure(&id("1/demo/m0"), &spec).await.unwrap();
    let mut times = Vec::new();
    for n in 1..=5 {
        let begin = Instant::now();
        let status =
            world.machines.ensure(&id(&format!("1/demo/m{n}")), &spec).await.unwrap().status;
        times.push(begin.elapsed());
        let used = status["disk_used"].as_u64().unwrap();
        assert!(used < 512 << 10, "a new root has {used} bytes of its own");
    }
    times.sort();
    println!("machine from a cached image: p50 {:?}, all {times:?}", times[times.len() / 2]);
    assert!(times[0] < Duration::from_secs(2), "{times:?}");
    let images = names(&world.pool().join("images"));
    assert_eq!(images.iter().filter(|n| n.len() == 64).count(), 1, "{images:?}");
}

#[tokio::test]
async fn machines_that_want_a_new_image_at_once_share_one_import() {
    let world = World::new().await;
    let ids: Vec<_> = (0..6).map(|n| id(&format!("1/demo/m{n}"))).collect();
    let spec = world.script("sleep 1000");
    let all = ids.iter().map(|id| {
        let (machines, id, spec) = (world.machines.clone(), id.clone(), spec.clone());
        tokio::spawn(async move { machines.ensure(&id, &spec).await })
    });
    for one in all.collect::<Vec<_>>() {
        one.await.unwrap().unwrap();
    }
    let images = names(&world.pool().join("images"));
    assert_eq!(images.iter().filter(|n| n.len() == 64).count(), 1, "{images:?}");
    assert!(!images.iter().any(|n| n.starts_with(".new-")), "{images:?}");
}

#[tokio::test]
async fn a_folder_is_an_image_too_and_its_change_a_new_one() {
    let world = World::new().await;
    let folder = world.folder.path().join("images/tree");
    fs::create_dir_all(folder.join("bin")).unwrap();
    fs::copy("/bin/busybox", folder.join("bin/busybox")).unwrap();
    symlink("busybox", folder.join("bin/sh")).unwrap();
    symlink("busybox", folder.join("bin/sleep")).unwrap();
    fs::write(folder.join("hello"), "one").unwrap();
    fs::set_permissions(folder.join("hello"), fs::Permissions::from_mode(0o4711)).unwrap();
    let mut spec = world.script("sleep 1000");
    spec["image"] = json!(format!("file://{}", folder.display()));
    world.machines.ensure(&id("1/demo/a"), &spec).await.unwrap();
    let hello = world.root(&id("1/demo/a")).join("hello");
    assert_eq!(fs::metadata(&hello).unwrap().mode() & 0o7777, 0o4711);

    fs::write(folder.join("hello"), "two").unwrap();
    world.machines.ensure(&id("1/demo/b"), &spec).await.unwrap();
    assert_eq!(fs::read_to_string(&hello).unwrap(), "one");
    assert_eq!(fs::read_to_string(world.root(&id("1/demo/b")).join("hello")).unwrap(), "two");
}

/// Makes an archive; unlike `tar`, it takes any name.
fn archive(path: &Path, entries: &[(&str, EntryType, &str)]) {
    let mut builder = Builder::new(fs::File::create(path).unwrap());
    for (name, kind, content) in entries {
        let mut header = Header::new_gnu();
        let raw = header.as_mut_bytes();
        raw[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o4755);
        header.set_uid(12);
        header.set_gid(34);
        header.set_mtime(1);
        if *kind == EntryType::Regular {
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).unwrap();
        } else {
            let raw = header.as_mut_bytes();
            raw[157..157 + content.len()].copy_from_slice(content.as_bytes());
            header.set_size(0);
            header.set_cksum();
            builder.append(&header, std::io::empty()).unwrap();
        }
    }
    builder.into_inner().unwrap();
}

async fn refused(world: &World, file: &Path, code: Code) {
    let web: ResourceId = id("1/demo/web");
    let mut spec = world.script("sleep 1000");
    spec["image"] = json!(format!("file://{}", file.display()));
    let error = assert_code(world.machines.ensure(&web, &spec).await, code);
    assert!(error.to_string().contains("image file://"), "{error}");
    assert!(!error.is_retryable());
    world.assert_clean();
    let left = names(&world.pool().join("images"));
    assert!(left.iter().all(|n| n == ".known"), "{left:?}");
}

#[tokio::test]
async fn an_image_that_would_escape_is_refused_and_leaves_nothing() {
    use EntryType::{Directory, Link, Regular, Symlink};
    let world = World::new().await;
    let file = world.folder.path().join("images/evil.tar");
    let outside = world.folder.path().join("outside");
    let inside_pool = "../../escaped";
    let cases: [&[(&str, EntryType, &str)]; 9] = [
        &[("../escaped", Regular, "x")],
        &[("a/../../escaped", Regular, "x")],
        &[("/escaped", Regular, "x")],
        &[("out", Symlink, inside_pool)],
        &[("out", Symlink, "/tmp"), ("out/escaped", Regular, "x")],
        &[("d/", Directory, ""), ("d/out", Symlink, "../.."), ("d/out/escaped", Regular, "x")],
        &[("hard", Link, "../../../../../../../etc/passwd")],
        &[("hard", Link, "/etc/passwd")],
        &[("out", Symlink, "/etc"), ("hard", Link, "out/passwd")],
    ];
    for entries in cases {
        archive(&file, entries);
        refused(&world, &file, Code::ImageUnsafe).await;
        assert!(!Path::new("/tmp/escaped").exists() && !Path::new("/escaped").exists());
        assert!(!world.pool().join("escaped").exists() && !outside.exists());
    }
    let folder = world.folder.path().join("images/tree");
    fs::create_dir_all(&folder).unwrap();
    symlink("../../x", folder.join("out")).unwrap();
    refused(&world, &folder, Code::ImageUnsafe).await;
}

#[tokio::test]
async fn an_image_that_cannot_be_read_is_refused_and_leaves_nothing() {
    let world = World::new().await;
    let good = fs::read(world.folder.path().join("images/busybox.tar")).unwrap();
    let file = world.folder.path().join("images/bad.tar");
    let mut torn = good.clone();
    torn[512 * 3 + 20] ^= 0x55;
    let mut short_with_trailer = good[..good.len() / 2 / 512 * 512].to_vec();
    short_with_trailer.extend([0; 1024]);
    for (what, bytes) in [
        ("nothing", &b""[..]),
        ("not a tar", &[b'x'; 20_000][..]),
        ("truncated", &good[..good.len() / 2]),
        ("truncated at a block", &good[..good.len() / 2 / 512 * 512]),
        ("compressed", &[&[0x1f, 0x8b][..], &[0; 4096]].concat()),
        ("a bad checksum", &torn),
        ("a file that is cut", &short_with_trailer),
    ] {
        println!("{what}");
        fs::write(&file, bytes).unwrap();
        refused(&world, &file, Code::ImageCorrupt).await;
    }
    refused(&world, Path::new("/not/there.tar"), Code::ImageNotFound).await;
    refused(&world, Path::new("/etc/passwd"), Code::ImageNotFound).await;
    let link = world.folder.path().join("images/link.tar");
    symlink("/etc/passwd", &link).unwrap();
    refused(&world, &link, Code::ImageNotFound).await;
}

#[tokio::test]
async fn modes_owners_and_links_are_kept_and_devices_are_not() {
    use EntryType::{Char, Link, Regular, Symlink};
    let world = World::new().await;
    let file = world.folder.path().join("images/modes.tar");
    let busybox = fs::read("/bin/busybox").unwrap();
    archive(
        &file,
        &[
            ("su", Regular, "x"),
            ("hard", Link, "su"),
            ("null", Char, ""),
            ("a/b", Regular, "y"),
            ("link", Symlink, "a"),
            ("link/c", Regular, "z"),
            ("su", Regular, "again"),
        ],
    );
    // A machine needs something to run.
    let folder = world.folder.path().join("more/bin");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("sh"), busybox).unwrap();
    fs::set_permissions(folder.join("sh"), fs::Permissions::from_mode(0o755)).unwrap();
    let append = Command::new("tar")
        .arg("-rf")
        .arg(&file)
        .arg("-C")
        .arg(folder.parent().unwrap())
        .arg("bin")
        .status();
    assert!(append.unwrap().success());
    let web = id("1/demo/web");
    let spec = json!({ "image": format!("file://{}", file.display()), "command": ["/bin/sh", "-c", "while :; do read x < /dev/zero; done"], "memory": "64MiB", "cpu": 0.05 });
    world.machines.ensure(&web, &spec).await.unwrap();
    let root = world.root(&web);
    let meta = fs::metadata(root.join("hard")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o4755, 12, 34));
    assert_eq!(fs::read_to_string(root.join("hard")).unwrap(), "x");
    assert_eq!(fs::read_to_string(root.join("su")).unwrap(), "again");
    assert_eq!(fs::read_to_string(root.join("a/c")).unwrap(), "z");
    assert!(!root.join("null").exists());
}
