//! Jobs that waited for others, and go on.
//!
//! Ending a job says in one step that others waited for it; which ones, and what they are, is looked
//! up here, and then they are put where they may start, in another step. Whoever dies in between
//! leaves the note behind for the next round.

use redis::streams::{StreamId, StreamRangeReply};

use crate::jobs::in_vain;
use crate::link::Call;
use crate::member::{Identity, Member, Places};
use crate::record::{Place, to_json};
use crate::{BATCH, Queue, QueueError, keys};

impl Queue {
    /// Lets those go on that wait for what has ended.
    pub(crate) async fn release_waiting(&self) -> Result<(), QueueError> {
        loop {
            let mut read = redis::cmd("XRANGE");
            read.arg(keys::RELEASES).arg("-").arg("+").arg("COUNT").arg(BATCH);
            let notes: StreamRangeReply = self.link.query(&read).await?;
            if notes.ids.is_empty() {
                return Ok(());
            }
            for note in &notes.ids {
                self.release(note).await?;
            }
        }
    }

    async fn release(&self, note: &StreamId) -> Result<(), QueueError> {
        match note.get::<String>("o") {
            Some(order) => self.release_next(&note.id, &order).await,
            None => self.release_those_after(note).await,
        }
    }

    /// Those who wait for a job, as many as one call may move. When there are more, or have come
    /// meanwhile, the note is looked at again.
    async fn release_those_after(&self, note: &StreamId) -> Result<(), QueueError> {
        let (id, state) = (note.get::<String>("i"), note.get::<String>("s"));
        let (id, state) = (id.unwrap_or_default(), state.unwrap_or_default());
        let mut get = redis::cmd("HGET");
        get.arg(keys::WAITED).arg(&id);
        let seen: Option<String> = self.link.query(&get).await?;
        let seen = seen.unwrap_or_default();
        let members: Vec<&str> = seen.split(';').filter(|member| !member.is_empty()).collect();
        let (members, rest) = members.split_at(members.len().min(BATCH));
        let mut waiting = Vec::with_capacity(members.len());
        for member in members {
            waiting.push(self.identified(member).await?);
        }
        let places = Places::of(waiting.iter().map(|identity| &*identity.member.home));
        let call = Call::shared("release").args([&note.id, &id, &state, &seen]).arg(rest.join(";"));
        let mut call = places.write(call.arg(to_json(&in_vain())?));
        for identity in &waiting {
            call = identity.write(call).num(places.place(&identity.member.home));
            call = call.num(identity.starts_at);
        }
        self.link.call::<String>(&call).await?;
        Ok(())
    }

    /// The first of an order.
    async fn release_next(&self, note: &str, order: &str) -> Result<(), QueueError> {
        let mut first = redis::cmd("LINDEX");
        first.arg(keys::order(order)).arg(0);
        let first: Option<String> = self.link.query(&first).await?;
        let Some(first) = first else {
            let mut drop = redis::cmd("XDEL");
            drop.arg(keys::RELEASES).arg(note);
            return self.link.query(&drop).await;
        };
        let identity = self.identified(&first).await?;
        let places = Places::of([&*identity.member.home]);
        let call = places.write(Call::shared("release_next").arg(note));
        let call = identity.write(call).num(places.place(&identity.member.home));
        self.link.call::<String>(&call.num(identity.starts_at)).await?;
        Ok(())
    }

    async fn identified(&self, member: &str) -> Result<Identity, QueueError> {
        let corrupt = |e| QueueError::corrupt("a job that waits", e);
        let member: Member = member.parse().map_err(corrupt)?;
        Ok(match self.place(member.id).await? {
            Some(Place::Live { identity, .. }) => identity,
            Some(Place::Ended(_)) | None => Identity::of_member(member),
        })
    }
}
