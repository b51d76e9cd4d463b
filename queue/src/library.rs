//! The functions that run inside redis-server: each is one atomic step.
//!
//! Where there is `FUNCTION` (Redis 7, Valkey) they are one library, named after its own content, so
//! that two versions of this crate can use one redis-server at a time and none ever calls what it
//! does not know. Where there is not, each is a script of its own, called by its digest.

use std::fmt::Write;
use std::sync::LazyLock;

const SOURCE: &str = concat!(
    include_str!("library/head.lua"),
    include_str!("library/load.lua"),
    include_str!("library/jobs.lua"),
    include_str!("library/leases.lua"),
    include_str!("library/runners.lua"),
    include_str!("library/tasks.lua"),
    include_str!("library/operations.lua"),
);

/// What is called from outside.
pub(crate) const FUNCTIONS: &[&str] = &[
    "accept",
    "agree",
    "beat",
    "begin",
    "claim",
    "due",
    "finish",
    "finish_many",
    "forget",
    "forget_due",
    "give_back",
    "give_up",
    "journal",
    "lease_status",
    "open",
    "operate",
    "print_output",
    "progress",
    "promote",
    "publish",
    "record",
    "release",
    "release_next",
    "retry",
    "set",
    "shelve",
    "silent",
    "status",
    "submit",
    "tidy",
    "trim",
    "update",
    "withdraw",
];

/// Those that only read: redis-server answers them also when its disk is full.
const READERS: &[&str] = &["due", "record", "silent"];

static NAME: LazyLock<String> = LazyLock::new(|| format!("rz2_{:08x}", fingerprint(SOURCE)));

/// The code, as `FUNCTION LOAD` takes it.
pub(crate) fn code() -> String {
    let mut code = format!("#!lua name={}\n{SOURCE}", *NAME);
    for name in FUNCTIONS {
        let flags = if READERS.contains(name) { "'no-writes'" } else { "" };
        // Writing to a String does not fail.
        let _ = writeln!(
            code,
            "redis.register_function{{function_name='{}', callback={name}, flags={{{flags}}}}}",
            function(name)
        );
    }
    code
}

/// The code of one function, as `SCRIPT LOAD` takes it.
pub(crate) fn script(name: &str) -> String {
    format!("{SOURCE}\nreturn {name}(KEYS, ARGV)\n")
}

/// The name under which redis-server knows a function.
pub(crate) fn function(name: &str) -> String {
    format!("{}_{name}", *NAME)
}

/// FNV-1a: it tells versions apart, nothing more.
fn fingerprint(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_fnv_1a() {
        assert_eq!(fingerprint(""), 0x811c_9dc5);
        assert_eq!(fingerprint("foobar"), 0xbf9c_f968);
    }

    #[test]
    fn every_function_that_is_called_is_defined() {
        for name in FUNCTIONS {
            assert!(SOURCE.contains(&format!("local function {name}(")), "{name}");
        }
    }
}
