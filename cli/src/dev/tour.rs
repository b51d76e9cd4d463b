//! Waiting until every node can be deployed to.

use std::time::Duration;

use rhizome_identity::{SigningKey, http_signature};
use rhizome_model::Failure;
use rhizome_model::api::NodeView;
use rhizome_service::Client;

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
