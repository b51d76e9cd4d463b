//! Which statements hold. Pure: time and pages come from outside.
//!
//! ```text
//!   take(statement) ─▶ holds ── expires, and no page has renewed it ──▶ expired
//!                        └───── a page names a later change of it ────▶ doubted ─ take ─▶ holds
//! ```
//!
//! The cursor is the last change that is known of. Each page begins where the last one ended, and
//! a statement that is taken holds at least up to the cursor: so no change is ever missed.

use std::collections::HashMap;

use rhizome_model::statement::{Account, Changes, Revision, Says, Statement, Subject};
use rhizome_model::{AccountId, KeyId};

/// More than one node serves; each takes about a kilobyte.
pub const CAPACITY: usize = 10_000;

#[derive(Debug, Default)]
pub struct Book {
    cursor: Option<Revision>,
    /// Until when the last page has renewed everything.
    renewed: i64,
    held: HashMap<Subject, Held>,
    by_key: HashMap<KeyId, AccountId>,
}

#[derive(Debug)]
struct Held {
    statement: Statement,
    /// The change that we know of and have not read.
    doubted: Option<Revision>,
}

/// What the book says about a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Holds(Box<Says>),
    Expired,
    Doubted,
    Nothing,
}

/// Something older than what is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Old {
    #[error(
        "what the ledger says about {subject} is of revision {said}, and {known} is known already"
    )]
    Statement { subject: Subject, said: Revision, known: Revision },
    #[error(
        "the ledger speaks of revision {said}, and {known} is known already; was it brought back \
         from an old backup?"
    )]
    Ledger { said: Revision, known: Revision },
    #[error("the changes after {asked} were asked for, and those after {said} came")]
    Gap { asked: Revision, said: Revision },
}

impl Book {
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// After which change to ask.
    pub fn cursor(&self) -> Option<Revision> {
        self.cursor
    }

    pub fn account_of(&self, key: &KeyId) -> Option<AccountId> {
        self.by_key.get(key).copied()
    }

    pub fn find(&self, subject: &Subject, now: i64) -> Found {
        match self.held.get(subject) {
            None => Found::Nothing,
            Some(held) if held.doubted.is_some() => Found::Doubted,
            Some(held) if held.statement.expires.max(self.renewed) <= now => Found::Expired,
            Some(held) => Found::Holds(Box::new(held.statement.says.clone())),
        }
    }

    /// Takes a statement up; what had to go for it, when the book is full.
    pub fn take(&mut self, statement: Statement) -> Result<Option<Subject>, Old> {
        if let Some(known) = self.cursor.filter(|cursor| statement.as_of < *cursor) {
            return Err(Old::Ledger { said: statement.as_of, known });
        }
        let subject = statement.says.subject();
        if let Some(held) = self.held.get(&subject) {
            let known = held.doubted.unwrap_or_default().max(held.statement.revision);
            if statement.revision < known {
                return Err(Old::Statement { subject, said: statement.revision, known });
            }
        }
        self.cursor.get_or_insert(statement.as_of);
        let evicted = self.make_room(&subject);
        self.insert(subject, statement);
        Ok(evicted)
    }

    /// What was kept on disk: it held when it was written, and pages were read since.
    pub fn restore(&mut self, head: Option<&Changes>, statements: Vec<Statement>) {
        let oldest = statements.iter().map(|s| s.as_of).min();
        self.cursor = head.map(|h| h.through).or(oldest);
        self.renewed = head.filter(|h| !h.more).map_or(0, |h| h.expires);
        for statement in statements.into_iter().take(CAPACITY) {
            self.insert(statement.says.subject(), statement);
        }
    }

    /// Reads a page of changes: everything that it does not name is renewed. The subjects that are
    /// doubted from now on.
    pub fn renew(&mut self, changes: &Changes) -> Result<Vec<Subject>, Old> {
        let asked = self.cursor.unwrap_or(changes.after);
        if changes.through < asked {
            return Err(Old::Ledger { said: changes.through, known: asked });
        }
        if changes.after != asked {
            return Err(Old::Gap { asked, said: changes.after });
        }
        let mut doubted = Vec::new();
        for changed in &changes.changed {
            let Some(held) = self.held.get_mut(&changed.subject) else { continue };
            if held.statement.revision < changed.revision {
                held.doubted = Some(changed.revision.max(held.doubted.unwrap_or_default()));
                doubted.push(changed.subject);
            }
        }
        self.cursor = Some(changes.through);
        if !changes.more {
            self.renewed = self.renewed.max(changes.expires);
        }
        Ok(doubted)
    }

    fn insert(&mut self, subject: Subject, statement: Statement) {
        self.forget_keys(&subject);
        if let Says::Account(Account { id, keys, .. }) = &statement.says {
            self.by_key.extend(keys.iter().map(|k| (k.key, *id)));
        }
        self.held.insert(subject, Held { statement, doubted: None });
    }

    fn forget_keys(&mut self, subject: &Subject) {
        if let Some(Held { statement: Statement { says: Says::Account(account), .. }, .. }) =
            self.held.get(subject)
        {
            for key in &account.keys {
                self.by_key.remove(&key.key);
            }
        }
    }

    fn make_room(&mut self, subject: &Subject) -> Option<Subject> {
        if self.held.len() < CAPACITY || self.held.contains_key(subject) {
            return None;
        }
        let oldest =
            self.held.iter().min_by_key(|(_, h)| h.statement.issued_at).map(|(s, _)| *s)?;
        self.forget_keys(&oldest);
        self.held.remove(&oldest);
        Some(oldest)
    }
}

#[cfg(test)]
mod tests {
    use rhizome_model::statement::Changed;

    use super::*;

    fn key(n: u64) -> KeyId {
        KeyId([u8::try_from(n % 251).unwrap(); 32])
    }

    fn said(account: u64, revision: u64, as_of: u64, expires: i64) -> Statement {
        let says = Says::Account(Account::with_key(AccountId(account), key(account), 0));
        let network = "dev".into();
        Statement { network, revision, as_of, issued_at: expires - 100, expires, says }
    }

    fn page(after: u64, through: u64, expires: i64, changed: &[(u64, u64)]) -> Changes {
        let changed = changed
            .iter()
            .map(|(id, revision)| Changed { subject: subject(*id), revision: *revision })
            .collect();
        let issued_at = expires - 100;
        Changes { network: "dev".into(), after, through, more: false, issued_at, expires, changed }
    }

    fn subject(account: u64) -> Subject {
        Subject::Account(AccountId(account))
    }

    fn holds(book: &Book, account: u64, now: i64) -> bool {
        matches!(book.find(&subject(account), now), Found::Holds(_))
    }

    #[test]
    fn a_statement_holds_until_it_expires_or_a_page_renews_it() {
        let mut book = Book::default();
        book.take(said(7, 1, 5, 100)).unwrap();
        assert!(holds(&book, 7, 99));
        assert_eq!(book.find(&subject(7), 100), Found::Expired);
        book.renew(&page(5, 5, 200, &[])).unwrap();
        assert!(holds(&book, 7, 199));
        assert_eq!(book.find(&subject(7), 200), Found::Expired);
        assert_eq!(book.find(&subject(8), 0), Found::Nothing);
    }

    #[test]
    fn what_a_page_names_is_doubted_until_it_is_said_anew() {
        let mut book = Book::default();
        book.take(said(7, 1, 5, 100)).unwrap();
        book.take(said(8, 2, 5, 100)).unwrap();
        let doubted = book.renew(&page(5, 9, 200, &[(7, 8), (3, 9)])).unwrap();
        assert_eq!(doubted, [subject(7)]);
        assert_eq!(book.find(&subject(7), 0), Found::Doubted);
        assert!(holds(&book, 8, 199));
        // Somebody on the way sends what was said before.
        let old = Old::Ledger { said: 5, known: 9 };
        assert_eq!(book.take(said(7, 1, 5, 300)), Err(old));
        let old = Old::Statement { subject: subject(7), said: 1, known: 8 };
        assert_eq!(book.take(said(7, 1, 9, 300)), Err(old));
        assert_eq!(book.find(&subject(7), 0), Found::Doubted);
        book.take(said(7, 8, 9, 300)).unwrap();
        assert!(holds(&book, 7, 0));
        let old = Old::Statement { subject: subject(7), said: 7, known: 8 };
        assert_eq!(book.take(said(7, 7, 10, 300)), Err(old));
    }

    #[test]
    fn pages_follow_each_other() {
        let mut book = Book::default();
        book.renew(&page(5, 5, 100, &[])).unwrap();
        assert_eq!(book.renew(&page(6, 7, 100, &[])), Err(Old::Gap { asked: 5, said: 6 }));
        let back = Old::Ledger { said: 4, known: 5 };
        assert_eq!(book.renew(&page(4, 4, 100, &[])), Err(back));
        book.renew(&page(5, 8, 100, &[])).unwrap();
        assert_eq!(book.cursor(), Some(8));
    }

    #[test]
    fn a_page_of_several_renews_only_with_the_last() {
        let mut book = Book::default();
        book.take(said(7, 1, 5, 100)).unwrap();
        book.renew(&Changes { more: true, ..page(5, 6, 200, &[]) }).unwrap();
        assert_eq!(book.find(&subject(7), 150), Found::Expired);
    }

    #[test]
    fn a_change_that_is_known_already_raises_no_doubt() {
        let mut book = Book::default();
        book.renew(&page(5, 5, 100, &[])).unwrap();
        book.take(said(7, 8, 8, 100)).unwrap();
        assert_eq!(book.renew(&page(5, 9, 100, &[(7, 8)])).unwrap(), []);
        assert!(holds(&book, 7, 0));
    }

    #[test]
    fn what_was_kept_goes_on_where_it_stopped() {
        let mut book = Book::default();
        book.restore(Some(&page(5, 9, 200, &[])), vec![said(7, 1, 5, 100)]);
        assert!(holds(&book, 7, 199) && book.account_of(&key(7)) == Some(AccountId(7)));
        assert_eq!(book.renew(&page(9, 10, 300, &[(7, 10)])).unwrap(), [subject(7)]);
        let mut headless = Book::default();
        headless.restore(None, vec![said(7, 1, 5, 100), said(8, 2, 3, 100)]);
        assert_eq!(headless.cursor(), Some(3));
    }

    #[test]
    fn a_key_leads_to_its_account_also_after_its_end() {
        let mut book = Book::default();
        book.take(said(7, 1, 5, 100)).unwrap();
        let Says::Account(account) = said(7, 1, 5, 100).says else { unreachable!() };
        let change = rhizome_model::statement::KeyChange::Rotate { old: key(7), new: key(9) };
        let rotated = account.changed(&change, &[key(7), key(9)], 1).unwrap();
        book.take(Statement { says: Says::Account(rotated), ..said(7, 6, 6, 100) }).unwrap();
        assert_eq!(book.account_of(&key(7)), Some(AccountId(7)));
        assert_eq!(book.account_of(&key(9)), Some(AccountId(7)));
    }

    #[test]
    fn a_full_book_lets_the_oldest_go() {
        let mut book = Book::default();
        for id in 1..=CAPACITY as u64 {
            assert_eq!(book.take(said(id, 1, 5, 100 + id.cast_signed())), Ok(None));
        }
        let evicted = book.take(said(CAPACITY as u64 + 1, 1, 5, 1_000_000)).unwrap();
        assert_eq!(evicted, Some(subject(1)));
        assert_eq!((book.len(), book.find(&subject(1), 0)), (CAPACITY, Found::Nothing));
    }
}
