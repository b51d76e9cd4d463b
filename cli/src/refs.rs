//! What a user calls deployments and resources: with or without the account in front.

use std::str::FromStr;

use rhizome_model::{AccountId, DeploymentId, Name, ResourceId};

/// `NAME`, or `ACCOUNT/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeploymentRef {
    /// None: the account of the key.
    pub account: Option<AccountId>,
    pub name: Name,
}

/// `NAME/RESOURCE`, or `ACCOUNT/NAME/RESOURCE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceRef {
    pub deployment: DeploymentRef,
    pub resource: Name,
}

impl FromStr for DeploymentRef {
    type Err = rhizome_model::IdError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.contains('/') {
            let id: DeploymentId = s.parse()?;
            Ok(Self { account: Some(id.account), name: id.name })
        } else {
            Ok(Self { account: None, name: s.parse()? })
        }
    }
}

impl FromStr for ResourceRef {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if s.matches('/').count() == 2 {
            let id: ResourceId = s.parse().map_err(|e: rhizome_model::IdError| e.to_string())?;
            let deployment = DeploymentRef { account: Some(id.account), name: id.deployment };
            return Ok(Self { deployment, resource: id.name });
        }
        let parts = s.split_once('/').and_then(|(d, r)| Some((d.parse().ok()?, r.parse().ok()?)));
        let (name, resource) = parts.ok_or_else(|| {
            "write NAME/RESOURCE, for example demo/web, or ACCOUNT/NAME/RESOURCE".to_owned()
        })?;
        Ok(Self { deployment: DeploymentRef { account: None, name }, resource })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_and_without_account() {
        let short: DeploymentRef = "demo".parse().unwrap();
        assert_eq!((short.account, short.name.as_str()), (None, "demo"));
        let long: DeploymentRef = "7/demo".parse().unwrap();
        assert_eq!(long.account, Some(AccountId(7)));
        let short: ResourceRef = "demo/web".parse().unwrap();
        assert_eq!((short.deployment.account, short.resource.as_str()), (None, "web"));
        let long: ResourceRef = "7/demo/web".parse().unwrap();
        assert_eq!(long.deployment, "7/demo".parse().unwrap());
        for bad in ["", "Demo", "0/demo", "a/b/c", "../x", "1/a/b"] {
            assert!(bad.parse::<DeploymentRef>().is_err(), "{bad}");
        }
        for bad in ["demo", "demo/", "/web", "a/b/c", "1/a/b/c", "demo/../x"] {
            assert!(bad.parse::<ResourceRef>().is_err(), "{bad}");
        }
    }
}
