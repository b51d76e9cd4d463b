//! Who may have what done with the node's key: root and the identity manager's own user everything,
//! others what was granted to them, by purpose.

use std::str::FromStr;

use rhizome_model::{Code, Failure};

use crate::Purpose;

/// What the key does for somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Sign,
    Encrypt,
    Decrypt,
}

impl Operation {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Sign, "sign"), (Self::Encrypt, "encrypt"), (Self::Decrypt, "decrypt")];
}

/// `UID:PURPOSE:sign+encrypt+decrypt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub uid: u32,
    pub purpose: Purpose,
    pub operations: Vec<Operation>,
}

impl FromStr for Grant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = "write UID:PURPOSE:sign, with + between several of sign, encrypt, decrypt";
        let mut parts = text.split(':');
        let (Some(uid), Some(purpose), Some(operations), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(form.into());
        };
        let operation = |word: &str| {
            let found = Operation::ALL.into_iter().find(|(_, name)| *name == word);
            found.map(|(operation, _)| operation).ok_or_else(|| format!("'{word}': {form}"))
        };
        Ok(Self {
            uid: uid.parse().map_err(|_| format!("'{uid}' is no user id: {form}"))?,
            purpose: purpose.parse()?,
            operations: operations.split('+').map(operation).collect::<Result<_, _>>()?,
        })
    }
}

/// Whether the user at the other end may have this done.
pub fn check(
    grants: &[Grant],
    peer: Option<u32>,
    ours: u32,
    purpose: &Purpose,
    operation: Operation,
) -> Result<(), Failure> {
    if is_trusted(peer, ours) {
        return Ok(());
    }
    let theirs = || grants.iter().filter(|g| Some(g.uid) == peer);
    if theirs().next().is_none() {
        let message =
            "only root, the identity manager's own user and users with a grant may use the key";
        return Err(Failure::new(Code::Unauthorised, message));
    }
    if theirs().any(|g| g.purpose == *purpose && g.operations.contains(&operation)) {
        return Ok(());
    }
    let purpose = purpose.as_str();
    let message =
        format!("this user's grants do not have {operation:?} for the purpose '{purpose}'");
    Err(Failure::new(Code::WrongPurpose, message.to_lowercase()))
}

/// The mode of the socket keeps others away already; this holds also where somebody changed it.
pub fn is_trusted(peer: Option<u32>, ours: u32) -> bool {
    peer.is_some_and(|uid| uid == ours || uid == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_our_own_user_are_trusted() {
        assert!(is_trusted(Some(0), 1000) && is_trusted(Some(1000), 1000));
        let (other, root, nobody) = (Some(1001), Some(1000), None);
        assert!(!is_trusted(other, 1000) && !is_trusted(root, 0) && !is_trusted(nobody, 0));
    }

    #[test]
    fn a_grant_is_for_its_user_purpose_and_operations() {
        let grants: Vec<Grant> = vec!["1001:telemetry:sign+decrypt".parse().unwrap()];
        let purpose = |p: &str| p.parse::<Purpose>().unwrap();
        let code = |peer, p: &str, operation| {
            check(&grants, peer, 0, &purpose(p), operation).map_err(|f| f.code)
        };
        assert_eq!(code(Some(1001), "telemetry", Operation::Sign), Ok(()));
        assert_eq!(code(Some(1001), "telemetry", Operation::Decrypt), Ok(()));
        assert_eq!(code(Some(0), "anything", Operation::Encrypt), Ok(()));
        let wrong = Err(Code::WrongPurpose);
        assert_eq!(code(Some(1001), "telemetry", Operation::Encrypt), wrong);
        assert_eq!(code(Some(1001), "other", Operation::Sign), wrong);
        assert_eq!(code(Some(1002), "telemetry", Operation::Sign), Err(Code::Unauthorised));
        assert_eq!(code(None, "telemetry", Operation::Sign), Err(Code::Unauthorised));
        for bad in ["", "1", "1:a", "x:a:sign", "1:A:sign", "1:a:", "1:a:fly", "1:a:sign:more"] {
            assert!(bad.parse::<Grant>().is_err(), "{bad}");
        }
    }
}
