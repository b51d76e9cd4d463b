use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU8, Ordering};

use rhizome_model::{AccountId, Code, Failure, FarmId, NodeId};

use super::super::transfer::{Lock, Unlock, export, import};
use super::*;

const REGISTERED: Registered =
    Registered { account: AccountId(3), farm: FarmId(2), node: NodeId(7) };

fn store(dir: &Path) -> Store {
    Store::new(dir, &[], None)
}

#[track_caller]
fn create(store: Store) -> Kept {
    match store.open().unwrap() {
        Opened::Never(store) => store.create(SigningKey::generate().unwrap(), "S1", None).unwrap(),
        Opened::Known(_) => panic!("there is an identity"),
    }
}

#[track_caller]
fn known(store: Store) -> Kept {
    match store.open().unwrap() {
        Opened::Known(kept) => kept,
        Opened::Never(_) => panic!("the identity is gone"),
    }
}

fn stopped(store: Store) -> IdentityError {
    store.open().err().expect("it must stop")
}

#[test]
fn an_identity_is_made_once_and_remembers_its_registration() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = create(store(dir.path()));
    assert_eq!(kept.registered(), None);
    kept.save(REGISTERED).unwrap();
    let again = known(store(dir.path()));
    assert_eq!((again.key_id(), again.registered()), (kept.key_id(), Some(REGISTERED)));
    assert_eq!(again.serial_number(), "S1");
    let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_damaged_or_exposed_copy_stops_and_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    create(store(dir.path()));
    let path = dir.path().join(FILE);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(stopped(store(dir.path())).to_string().contains("chmod 600"));
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let good = std::fs::read(&path).unwrap();
    for bad in [&b""[..], &good[..good.len() / 2], b"something else"] {
        std::fs::write(&path, bad).unwrap();
        let failure = Failure::from(stopped(store(dir.path())));
        assert_eq!(failure.code, Code::IdentityLost);
        assert!(failure.message.contains("identity import"), "{failure}");
        assert_eq!(std::fs::read(&path).unwrap(), bad);
    }
    std::fs::write(&path, good).unwrap();
    known(store(dir.path()));
}

#[test]
fn told_to_be_new_it_sets_the_old_aside_but_never_a_good_one() {
    let dir = tempfile::tempdir().unwrap();
    create(store(dir.path()));
    assert!(matches!(store(dir.path()).set_aside(), Err(IdentityError::Exists(_))));
    std::fs::write(dir.path().join(FILE), "torn").unwrap();
    store(dir.path()).set_aside().unwrap();
    create(store(dir.path()));
    let kept: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
    assert!(kept.iter().any(|f| f.file_name().to_string_lossy().contains("replaced-")));
}

#[test]
fn a_pool_that_is_not_mounted_stops_a_first_start_only() {
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path().join("pool");
    std::fs::create_dir(&pool).unwrap();
    let with_pool = || Store::new(dir.path(), std::slice::from_ref(&pool), None);
    let error = stopped(with_pool()).to_string();
    assert!(error.contains("nothing is mounted there") && error.contains("mount it"), "{error}");
    let kept = create(store(dir.path()));
    assert_eq!(known(with_pool()).key_id(), kept.key_id());
    assert!(std::fs::read_dir(&pool).unwrap().next().is_none(), "written where nothing is mounted");
}

#[test]
fn files_of_older_versions_are_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let key = SigningKey::generate().unwrap();
    key.save_new(&dir.path().join("node.key")).unwrap();
    let mut old = serde_json::to_value(REGISTERED).unwrap();
    old["key"] = serde_json::to_value(key.key_id()).unwrap();
    std::fs::write(dir.path().join("registration.json"), old.to_string()).unwrap();
    let kept = known(store(dir.path()));
    assert_eq!((kept.key_id(), kept.registered()), (key.key_id(), Some(REGISTERED)));
    assert!(!dir.path().join("node.key").exists());
    assert_eq!(known(store(dir.path())).key_id(), key.key_id());

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("registration.json"), old.to_string()).unwrap();
    assert!(stopped(store(dir.path())).to_string().contains("shows that there was one"));
    let other = SigningKey::generate().unwrap();
    other.save_new(&dir.path().join("node.key")).unwrap();
    assert!(stopped(store(dir.path())).to_string().contains("registration.json is of the key"));
    store(dir.path()).set_aside().unwrap();
    create(store(dir.path()));
}

/// A TPM that does not work.
struct Dead {
    required: bool,
}

impl Sealer for Dead {
    fn seal(&self, _: &[u8]) -> Result<Vec<u8>, String> {
        Err("'tpm2_create' is not installed".into())
    }

    fn open(&self, _: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
        Err("'tpm2_load' is not installed".into())
    }

    fn is_required(&self) -> bool {
        self.required
    }
}

#[test]
fn a_tpm_that_does_not_work_stops_only_who_asked_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let with = |required| Store::new(dir.path(), &[], Some(Arc::new(Dead { required })));
    let key = SigningKey::generate().unwrap();
    let refused = with(true).create(key.clone(), "S1", None).err().unwrap();
    assert!(refused.to_string().contains("not installed"), "{refused}");
    assert!(!dir.path().join(FILE).exists());
    assert!(!with(false).create(key, "S1", None).unwrap().is_sealed());
    let before = std::fs::read(dir.path().join(FILE)).unwrap();
    assert!(!known(with(false)).is_sealed());
    assert_eq!(std::fs::read(dir.path().join(FILE)).unwrap(), before);
    assert!(matches!(stopped(with(true)), IdentityError::Key(_)));
}

/// A TPM in memory: it knows what it sealed, and can be another one.
struct Chip(AtomicU8);

impl Sealer for Chip {
    fn seal(&self, secret: &[u8]) -> Result<Vec<u8>, String> {
        let mask = self.0.load(Ordering::Relaxed);
        Ok([&[mask][..], &secret.iter().map(|b| b ^ mask).collect::<Vec<_>>()].concat())
    }

    fn open(&self, blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
        let mask = self.0.load(Ordering::Relaxed);
        match blob.split_first() {
            Some((first, rest)) if *first == mask => {
                Ok(Zeroizing::new(rest.iter().map(|b| b ^ mask).collect()))
            }
            _ => Err("this machine's TPM does not open it".into()),
        }
    }
}

#[test]
fn a_key_is_sealed_as_soon_as_there_is_a_tpm_and_opens_with_that_one_only() {
    let dir = tempfile::tempdir().unwrap();
    let plain = create(store(dir.path()));
    assert!(!plain.is_sealed());
    let chip = Arc::new(Chip(AtomicU8::new(0x5a)));
    let sealed = || Store::new(dir.path(), &[], Some(chip.clone()));
    let mut kept = known(sealed());
    assert!(kept.is_sealed());
    kept.save(REGISTERED).unwrap();
    assert_eq!(known(sealed()).key_id(), plain.key_id());
    let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
    assert!(!text.contains(plain.key().to_hex_seed().as_str()));

    assert!(stopped(store(dir.path())).to_string().contains("shows us none"));
    chip.0.store(0x11, Ordering::Relaxed);
    let failure = Failure::from(stopped(sealed()));
    assert_eq!(failure.code, Code::IdentityLost);
    assert!(failure.message.contains("put the disk back into its machine"), "{failure}");
    sealed().set_aside().unwrap();
    assert_ne!(create(sealed()).key_id(), plain.key_id());
}

#[test]
fn an_export_opens_for_its_passphrase_or_recipient_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = create(store(dir.path()));
    kept.save(REGISTERED).unwrap();
    let words = |text: &str| Zeroizing::new(text.to_owned());
    let code = |result: Result<_, Failure>| result.err().map(|f| f.code);

    let short = export(&kept, &Lock::Passphrase(words("short")));
    assert_eq!(code(short.map(|_| ())), Some(Code::BadRequest));
    let locked = export(&kept, &Lock::Passphrase(words("correct horse battery"))).unwrap();
    assert!(locked.starts_with("-----BEGIN AGE ENCRYPTED FILE-----"));
    let opened = import(locked.as_bytes(), &Unlock::Passphrase(words("correct horse battery")));
    let opened = opened.unwrap();
    assert_eq!(opened.key.key_id(), kept.key_id());
    assert_eq!((opened.serial_number.as_str(), opened.registered), ("S1", Some(REGISTERED)));
    let wrong = import(locked.as_bytes(), &Unlock::Passphrase(words("wrong horse battery")));
    assert_eq!(code(wrong.map(|_| ())), Some(Code::WrongPassphrase));

    let identity = age::x25519::Identity::generate();
    use age::secrecy::ExposeSecret;
    let file = |i: &age::x25519::Identity| {
        Unlock::Identity(words(&format!("# comment\n{}\n", i.to_string().expose_secret())))
    };
    let to = Lock::Recipient(identity.to_public().to_string());
    let locked = export(&kept, &to).unwrap();
    assert_eq!(import(locked.as_bytes(), &file(&identity)).unwrap().key.key_id(), kept.key_id());
    let other = import(locked.as_bytes(), &file(&age::x25519::Identity::generate()));
    assert_eq!(code(other.map(|_| ())), Some(Code::WrongPassphrase));
    for bad in [&b"junk"[..], &locked.as_bytes()[..200]] {
        assert_eq!(code(import(bad, &file(&identity)).map(|_| ())), Some(Code::BadRequest));
    }
    let nobody = export(&kept, &Lock::Recipient("age1nobody".into()));
    assert_eq!(code(nobody.map(|_| ())), Some(Code::BadRequest));
}
