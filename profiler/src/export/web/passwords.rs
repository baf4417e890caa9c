//! `basic_auth_users`: names and bcrypt hashes.
//!
//! A check costs tens of milliseconds of a core on purpose, so answers are remembered, one check runs
//! at a time, off the threads that wait for others, and a wrong password is followed by a pause:
//! whoever guesses gets a tenth of a core. Addresses take turns, so that a guesser does not keep others
//! waiting for more than one check of his.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bcrypt::HashParts;
use hyper::header::{AUTHORIZATION, HeaderMap};
use ring::{hmac, rand};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::Peer;

/// After a wrong password nothing is checked for this many times as long as the check took.
const PAUSE: u32 = 9;
/// Answers remembered of either kind. All of one kind are forgotten when there is no more room.
const REMEMBERED: usize = 128;
/// What bcrypt allows.
const COSTS: std::ops::RangeInclusive<u32> = 4..=31;

/// Hashes by user. Cannot be printed.
pub(super) struct Users {
    hashes: BTreeMap<String, String>,
    /// The hash that costs most: what a user that does not exist is checked against, so that time
    /// does not tell who exists.
    decoy: String,
}

impl Users {
    /// Checks that each hash is one.
    pub(super) fn checked(hashes: BTreeMap<String, String>) -> Result<Self, String> {
        let mut decoy = (0, String::new());
        for (user, hash) in &hashes {
            let cost = hash.parse::<HashParts>().map(|hash| hash.get_cost());
            let Some(cost) = cost.ok().filter(|cost| COSTS.contains(cost)) else {
                return Err(format!(
                    "basic_auth_users: what stands beside `{user}` is no bcrypt hash; make one with \
                     `htpasswd -nBC 10 {user}`"
                ));
            };
            if cost > decoy.0 {
                decoy = (cost, hash.clone());
            }
        }
        Ok(Self {
            hashes,
            decoy: decoy.1,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.hashes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }
}

/// A keyed hash of user, bcrypt hash and password: passwords are not kept.
type Tag = [u8; 32];

/// The latest answers. Wrong ones cannot push out right ones.
#[derive(Default)]
struct Answers {
    right: HashSet<Tag>,
    wrong: HashSet<Tag>,
}

impl Answers {
    fn get(&self, tag: &Tag) -> Option<bool> {
        if self.right.contains(tag) {
            return Some(true);
        }
        self.wrong.contains(tag).then_some(false)
    }

    fn insert(&mut self, tag: Tag, answer: bool) {
        let tags = if answer {
            &mut self.right
        } else {
            &mut self.wrong
        };
        if tags.len() >= REMEMBERED {
            tags.clear();
        }
        tags.insert(tag);
    }
}

/// One address's turn.
type Turn = tokio::sync::Mutex<()>;

/// Checks passwords.
pub(super) struct Passwords {
    key: hmac::Key,
    answers: Arc<Mutex<Answers>>,
    /// One check at a time.
    check: Arc<Semaphore>,
    turns: Mutex<HashMap<Peer, Weak<Turn>>>,
}

impl Passwords {
    /// `None` if the kernel has no random numbers for a key.
    pub(super) fn new() -> Option<Self> {
        let random = rand::SystemRandom::new();
        Some(Self {
            key: hmac::Key::generate(hmac::HMAC_SHA256, &random).ok()?,
            answers: Arc::default(),
            check: Arc::new(Semaphore::new(1)),
            turns: Mutex::default(),
        })
    }

    /// True if the request's user and password are right, or none are asked for.
    pub(super) async fn admit(&self, users: &Users, headers: &HeaderMap, peer: Peer) -> bool {
        if users.is_empty() {
            return true;
        }
        let Some((user, password)) = credentials(headers) else {
            return false;
        };
        let known = users.hashes.get(&user);
        let tag = self.tag(&user, known, &password);
        if let Some(answer) = self.remembered(&tag) {
            return answer;
        }
        let turn = self.turn(peer);
        let _turn = turn.lock().await;
        let Ok(check) = Arc::clone(&self.check).acquire_owned().await else {
            return false;
        };
        // Who waited before may have asked the same.
        if let Some(answer) = self.remembered(&tag) {
            return answer;
        }
        let is_known = known.is_some();
        let hash = known.unwrap_or(&users.decoy).clone();
        let answers = Arc::clone(&self.answers);
        let (tell, told) = oneshot::channel();
        // A task of its own: a client that leaves ends neither the check nor the pause.
        tokio::spawn(async move {
            let began = Instant::now();
            let is_right = spawn_blocking(move || bcrypt::verify(password, &hash)).await;
            let answer = is_known && matches!(is_right, Ok(Ok(true)));
            let pause = if answer {
                Duration::ZERO
            } else {
                began.elapsed() * PAUSE
            };
            answers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(tag, answer);
            // Only fails where the client has left.
            let _ = tell.send(answer);
            sleep(pause).await;
            drop(check);
        });
        told.await.unwrap_or(false)
    }

    fn remembered(&self, tag: &Tag) -> Option<bool> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(tag)
    }

    fn tag(&self, user: &str, hash: Option<&String>, password: &[u8]) -> Tag {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [
            user.as_bytes(),
            hash.map_or(&[], |hash| hash.as_bytes()),
            password,
        ] {
            context.update(&part.len().to_le_bytes());
            context.update(part);
        }
        let mut tag = Tag::default();
        for (to, from) in tag.iter_mut().zip(context.sign().as_ref()) {
            *to = *from;
        }
        tag
    }

    fn turn(&self, peer: Peer) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(&peer).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(peer, Arc::downgrade(&turn));
        turn
    }
}

/// User and password of the request; `None` if there are none.
fn credentials(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    let told = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = told.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = STANDARD.decode(encoded).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let (user, password) = decoded.split_at_checked(colon)?;
    // A name that is no text is nobody's.
    let user = String::from_utf8_lossy(user).into_owned();
    Some((user, password.get(1..)?.to_vec()))
}

#[cfg(test)]
mod tests;
