//! TAPs: the links of virtual machines. A TAP is there before its hypervisor opens it, and stays
//! when that has died.

use rhizome_model::ResourceId;

use crate::error::Result;
use crate::node::Mark;

use super::link::{connect, has_link, ip, line};

pub(super) fn make(mark: &Mark, id: &ResourceId) -> Result<()> {
    let mut batch = String::new();
    line(&mut batch, format_args!("tuntap add dev {} mode tap", mark.link(id)));
    connect(&mut batch, mark, id);
    ip(&[], batch)
}

/// One that was deleted is made again, though the hypervisor that had it open has lost it.
pub(super) fn mend(mark: &Mark, id: &ResourceId) -> Result<()> {
    if !has_link(&mark.link(id)) {
        return make(mark, id);
    }
    let mut batch = String::new();
    connect(&mut batch, mark, id);
    ip(&[], batch)
}
