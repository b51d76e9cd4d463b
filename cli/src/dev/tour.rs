//! Waiting until every node can be deployed to.

use std::time::Duration;

use rhizome_identity::{SigningKey, http_signature};
use rhizome_model::Failure;
use rhizome_model::api::{LedgerNodeView, NodeView};
use rhizome_service::Client;
use serde_json::json;

use crate::profile::ClientFile;

pub async fn all_nodes_reachable(
    client: &ClientFile,
    key: SigningKey,
    nodes: u16,
) -> Result<(), Failure> {
    let coord = Client::new("coord", &client.coord)?.signed(http_signature::signer(key));
    loop {
        let views: Vec<NodeView> = coord.get("/v1/nodes").await?;
        let reachable = views.iter().filter(|n| n.reachable).count();
        if reachable >= usize::from(nodes) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The farm is the deployer's, and so are its nodes.
pub async fn approve_nodes(client: &ClientFile, key: SigningKey) -> Result<(), Failure> {
    let ledger = Client::new("ledger", &client.ledger)?.signed(http_signature::signer(key));
    let nodes: Vec<LedgerNodeView> = ledger.get("/v2/nodes?approved=false&size=1000").await?;
    for node in nodes {
        let path = format!("/v2/nodes/{}/approval", node.id);
        ledger.put::<LedgerNodeView>(&path, &json!({ "approved": true })).await?;
    }
    Ok(())
}
