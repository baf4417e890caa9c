use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::header::HeaderValue;
use tokio::time::timeout;

use super::*;
use crate::export::web::tests::secret;

const SOON: Duration = Duration::from_secs(20);

fn users() -> Arc<Users> {
    let hashes = [("prometheus".to_owned(), secret())];
    Arc::new(Users::checked(hashes.into()).unwrap())
}

fn peer(last: u8) -> Peer {
    Peer::of([10, 0, 0, last].into())
}

fn login(user: &str, password: &str) -> HeaderMap {
    let encoded = STANDARD.encode(format!("{user}:{password}"));
    told(&format!("Basic {encoded}"))
}

fn told(authorization: &str) -> HeaderMap {
    let value = HeaderValue::from_str(authorization).unwrap();
    HeaderMap::from_iter([(AUTHORIZATION, value)])
}

#[tokio::test]
async fn the_right_password_alone_is_let_in() {
    let (users, passwords) = (users(), Passwords::new().unwrap());
    let encoded = STANDARD.encode("prometheus:secret");
    for (headers, expected) in [
        (login("prometheus", "secret"), true),
        (told(&format!("bAsIc {encoded}")), true),
        (login("prometheus", "Secret"), false),
        (login("prometheus", ""), false),
        (login("prometheus", "secret:"), false),
        (login("Prometheus", "secret"), false),
        (login("", "secret"), false),
        (HeaderMap::new(), false),
        (told("Basic"), false),
        (told("Basic %%%"), false),
        (
            told(&format!("Basic {}", STANDARD.encode("prometheus"))),
            false,
        ),
        (told(&format!("Bearer {encoded}")), false),
    ] {
        // Asked twice: the second answer is remembered.
        for _ in 0..2 {
            let admitted = passwords.admit(&users, &headers, peer(1)).await;
            assert_eq!(admitted, expected, "{headers:?}");
        }
    }
    let nobody = Users::checked(BTreeMap::new()).unwrap();
    assert!(passwords.admit(&nobody, &HeaderMap::new(), peer(1)).await);
}

#[tokio::test]
async fn what_was_checked_is_not_checked_again_and_guesses_do_not_push_it_out() {
    let (users, passwords) = (users(), Passwords::new().unwrap());
    let right = login("prometheus", "secret");
    assert!(passwords.admit(&users, &right, peer(1)).await);
    assert!(
        !passwords
            .admit(&users, &login("prometheus", "wrong"), peer(1))
            .await
    );
    {
        let mut answers = passwords.answers.lock().unwrap();
        for guess in 0..1000_usize {
            let guess = guess.to_le_bytes();
            answers.insert(passwords.tag("prometheus", None, &guess), false);
        }
        assert!(answers.wrong.len() <= REMEMBERED);
    }
    // Nothing can be checked now.
    let held = passwords.check.acquire().await.unwrap();
    let at_once = passwords.admit(&users, &right, peer(1));
    assert!(timeout(SOON, at_once).await.unwrap());
    let other = login("prometheus", "another");
    let checked = passwords.admit(&users, &other, peer(1));
    assert!(timeout(Duration::from_millis(100), checked).await.is_err());
    drop(held);
    // A new hash is another question.
    let changed = [("prometheus".to_owned(), bcrypt::hash("new", 4).unwrap())];
    let changed = Users::checked(changed.into()).unwrap();
    assert!(!passwords.admit(&changed, &right, peer(1)).await);
}

#[tokio::test]
async fn a_wrong_password_is_followed_by_a_pause_and_a_right_one_is_not() {
    let (users, passwords) = (users(), Passwords::new().unwrap());
    let right = login("prometheus", "secret");
    assert!(passwords.admit(&users, &right, peer(1)).await);
    drop(timeout(SOON, passwords.check.acquire()).await.unwrap());

    let asked = Instant::now();
    assert!(
        !passwords
            .admit(&users, &login("prometheus", "1"), peer(1))
            .await
    );
    let check = asked.elapsed();
    drop(timeout(SOON, passwords.check.acquire()).await.unwrap());
    // What was measured is the check and a little more.
    let paused = asked.elapsed().saturating_sub(check);
    assert!(paused >= check * PAUSE / 3, "{check:?} {paused:?}");
}

#[tokio::test]
async fn a_guesser_keeps_another_address_waiting_for_one_check_at_most() {
    let (users, passwords) = (users(), Arc::new(Passwords::new().unwrap()));
    let guessed = Arc::new(AtomicUsize::new(0));
    for guess in 0..50 {
        let (users, passwords) = (Arc::clone(&users), Arc::clone(&passwords));
        let guessed = Arc::clone(&guessed);
        tokio::spawn(async move {
            let headers = login("prometheus", &guess.to_string());
            assert!(!passwords.admit(&users, &headers, peer(1)).await);
            guessed.fetch_add(1, Ordering::Relaxed);
        });
    }
    while guessed.load(Ordering::Relaxed) == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    let before = guessed.load(Ordering::Relaxed);
    let right = login("prometheus", "secret");
    let admitted = passwords.admit(&users, &right, peer(2));
    assert!(timeout(SOON, admitted).await.unwrap());
    let meanwhile = guessed.load(Ordering::Relaxed) - before;
    assert!(meanwhile <= 2, "{meanwhile} guesses came first");
}

#[tokio::test]
async fn time_does_not_tell_which_users_there_are() {
    let hashes = [
        ("cheap".to_owned(), secret()),
        ("prometheus".to_owned(), bcrypt::hash("secret", 7).unwrap()),
    ];
    let users = Users::checked(hashes.into()).unwrap();
    let mut least = [Duration::MAX; 2];
    for round in 0..3 {
        for (user, least) in ["prometheus", "nobody"].into_iter().zip(&mut least) {
            // A new one has no pause before it.
            let passwords = Passwords::new().unwrap();
            let asked = Instant::now();
            let headers = login(user, &round.to_string());
            assert!(!passwords.admit(&users, &headers, peer(1)).await);
            *least = asked.elapsed().min(*least);
        }
    }
    let [known, unknown] = least.map(|time| time.as_secs_f64());
    assert!((0.6..1.7).contains(&(known / unknown)), "{known} {unknown}");
}

#[tokio::test]
async fn a_client_that_leaves_ends_neither_the_check_nor_the_pause() {
    let (users, passwords) = (users(), Passwords::new().unwrap());
    let headers = login("prometheus", "wrong");
    for _ in 0..2 {
        let impatient = passwords.admit(&users, &headers, peer(1));
        assert!(timeout(Duration::from_micros(1), impatient).await.is_err());
    }
    assert_eq!(passwords.check.available_permits(), 0);
    drop(timeout(SOON, passwords.check.acquire()).await.unwrap());
    let remembered = passwords.admit(&users, &headers, peer(1));
    let held = passwords.check.acquire().await.unwrap();
    assert!(!timeout(SOON, remembered).await.unwrap());
    drop(held);
}
