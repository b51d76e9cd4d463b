//! The functions that run inside redis-server: each is one atomic step.
//!
//! The library is named after its own content, so that two versions of this crate can use one
//! redis-server at a time, and none ever calls what it does not know.

use std::sync::LazyLock;

const SOURCE: &str = concat!(
    include_str!("library/head.lua"),
    include_str!("library/jobs.lua"),
    include_str!("library/tasks.lua"),
    include_str!("library/tail.lua"),
);

static NAME: LazyLock<String> = LazyLock::new(|| format!("rz1_{:08x}", fingerprint(SOURCE)));

/// The code, as `FUNCTION LOAD` takes it.
pub(crate) fn code() -> String {
    format!("#!lua name={}\n{}", *NAME, SOURCE.replace("@LIB@", &NAME))
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
    fn the_code_names_itself() {
        assert!(code().starts_with("#!lua name=rz1_"));
        assert!(!code().contains("@LIB@"));
    }
}
