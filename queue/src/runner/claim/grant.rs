//! What a runner reads by itself: more of an account's jobs than a function of redis-server should hand
//! out in one step.

use redis::{RedisResult, Value};
use tokio::sync::OwnedSemaphorePermit;

use super::{Claimer, array, no_reader, placed, unbegun, words};
use crate::keys;
use crate::stored;

/// Jobs that are read in one step of redis-server: enough that syncing its file for them is rare, and few
/// enough that a runner with thousands of slots works on some while it reads others.
const PART: usize = 1024;

/// What a runner may read itself.
pub(super) struct Grant {
    account: String,
    count: usize,
    lanes: Vec<String>,
}

impl Grant {
    pub(super) fn read(value: Value) -> Option<Self> {
        let [account, count, lanes] = <[Value; 3]>::try_from(array(value)).ok()?;
        let Value::Int(count) = count else { return None };
        let account = stored::text(account)?;
        Some(Self { account, count: count.try_into().ok()?, lanes: words(lanes) })
    }
}

impl Claimer {
    /// Reads what was granted; how many. While redis-server answers, what came before becomes leases.
    /// Where there is less, the account's turn may be over: the next claim sees to that.
    pub(super) async fn read(
        &mut self,
        grant: Grant,
        free: &mut OwnedSemaphorePermit,
    ) -> RedisResult<usize> {
        let mut reader = self.reader.take().ok_or_else(no_reader)?;
        let (mut left, mut came) = (grant.count, Vec::new());
        let mut lanes = grant.lanes.iter();
        let mut lane = lanes.next();
        while let Some(from) = lane.filter(|_| left > 0) {
            let asked = left.min(PART);
            let look = self.look(from, asked);
            let ready = std::mem::take(&mut came);
            let (answer, ()) =
                tokio::join!(look.query_async(&mut reader.connection), self.deliver(ready, free));
            let (reply, stopped): (Value, bool) = answer?;
            let read = array(reply).into_iter().filter_map(stored::entries).flat_map(placed);
            came = read.collect();
            if stopped {
                self.shelve(came.into_iter().map(unbegun).collect()).await;
                self.reader = Some(reader);
                return Ok(grant.count - left);
            }
            left -= came.len().min(left);
            if came.len() < asked {
                lane = lanes.next();
            }
        }
        self.deliver(came, free).await;
        self.reader = Some(reader);
        if left > 0 {
            self.short.push(grant.account);
        }
        Ok(grant.count - left)
    }

    /// Reads so many of a lane. Should its queue have been stopped since the grant, what is read does
    /// not start.
    fn look(&self, lane: &str, count: usize) -> redis::Pipeline {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(keys::GROUP).arg(&self.shared.options.name);
        read.arg("COUNT").arg(count).arg("STREAMS").arg(lane).arg(">");
        let queue = keys::queue_of(keys::lane_name(lane));
        let mut look = redis::pipe();
        look.add_command(read).cmd("HEXISTS").arg(keys::SETTINGS).arg(format!("m {queue}"));
        look
    }
}
