//! hwmon against trees of files as drivers make them.

use std::sync::mpsc::{self, Receiver};

use tempfile::TempDir;

use super::*;

/// A directory like `/sys/class/hwmon`.
struct Tree(TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, file: &str, text: &str) -> &Self {
        let path = self.0.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn acpi(&self, number: u32, oem_info: &str, watts: u64) -> &Self {
        let device = format!("hwmon{number}/device");
        self.write(&format!("{device}/name"), "power_meter\n")
            .write(
                &format!("{device}/power1_average"),
                &format!("{watts}000000\n"),
            )
            .write(
                &format!("{device}/power1_oem_info"),
                &format!("{oem_info}\n"),
            )
            .write(&format!("{device}/power1_accuracy"), "100.0%\n")
    }

    fn open(&self) -> Option<Sensors> {
        Sensors::open(self.0.path())
    }
}

fn names(sensors: &Sensors) -> (Vec<String>, Vec<String>) {
    let cpus = sensors.meters().into_iter().map(|meter| meter.device);
    (cpus.collect(), sensors.nodes().map(str::to_owned).collect())
}

#[test]
fn a_plain_acpi_meter_is_the_machine_and_other_drivers_say_nothing_of_it() {
    let tree = Tree::new();
    tree.write("hwmon0/name", "nvme\n")
        .write("hwmon0/power1_input", "5000000\n")
        .write("hwmon1/name", "xgene\n")
        .write("hwmon1/power1_input", "50000000\n")
        .write("hwmon2/name", "power_meter\n")
        .write("hwmon2/power1_average", "612000000\n")
        .write("hwmon2/power1_accuracy", "80\n")
        .write("hwmon2/power1_is_battery", "0\n")
        .write("hwmon3/name", "power_meter\n")
        .write("hwmon3/power1_average", "9000000\n")
        .write("hwmon3/power1_is_battery", "1\n");
    let sensors = tree.open().unwrap();
    assert_eq!(names(&sensors), (vec![], vec!["acpi-0".to_owned()]));
    let gain = sensors.nodes[0].gain_error_ratio;
    assert!((gain - 0.2).abs() < 1e-9, "{gain}");
}

#[test]
fn a_grace_socket_is_the_cpus_meter_its_rails_are_not_and_the_module_is_a_node_meter() {
    let tree = Tree::new();
    tree.acpi(1, "Module Power Socket 0", 640)
        .acpi(2, "Grace Power Socket 0", 150)
        .acpi(3, "CPU Power Socket 0", 110)
        .acpi(4, "SysIO Power Socket 0", 12)
        .acpi(5, "CPU Power Socket 1", 90)
        .acpi(6, "Total Power Socket 0", 170);
    let sensors = tree.open().unwrap();
    let cpus = vec!["cpu-rail-1".to_owned(), "grace-0".to_owned()];
    assert_eq!(names(&sensors), (cpus, vec!["module-0".to_owned()]));
    for meter in sensors.meters() {
        assert_eq!(
            (meter.component, meter.source),
            (Component::Cpu, Source::Integrated)
        );
        // Firmware that says it is exact is not believed.
        assert_eq!(meter.gain_error_ratio, 0.05);
    }
    let left = sensors.without_cpus().unwrap();
    assert_eq!(names(&left), (vec![], vec!["module-0".to_owned()]));
}

#[test]
fn a_sensor_that_does_not_answer_or_shows_nothing_is_absent() {
    let tree = Tree::new();
    assert!(tree.open().is_none());
    tree.acpi(0, "", 0);
    tree.write("hwmon1/name", "power_meter\n")
        .write("hwmon1/power1_average", "none\n");
    assert!(tree.open().is_none());
    assert!(Sensors::open(Path::new("/nonexistent/hwmon")).is_none());
}

fn wait<T>(news: &Receiver<News>, mut pick: impl FnMut(News) -> Option<T>) -> T {
    loop {
        let told = news.recv_timeout(Duration::from_secs(10)).unwrap();
        if let Some(picked) = pick(told) {
            return picked;
        }
    }
}

#[test]
fn sockets_feed_the_ledger_machines_do_not_and_a_sensor_that_fails_is_told() {
    let tree = Tree::new();
    tree.acpi(0, "", 700).acpi(1, "Grace Power Socket 0", 200);
    tree.write("hwmon2/name", "aem1\n")
        .write("hwmon2/energy1_input", "1000000\n");
    let sensors = tree.open().unwrap();
    let (sender, news) = mpsc::channel();
    let mut running = Running::default();
    sensors
        .start(&[MeterId(4)], &mut running, Feed(sender))
        .unwrap();

    let mut seen = Vec::new();
    let (after, until, energy) = wait(&news, |news| match news {
        News::Event(Event::Reading(reading)) => {
            assert_eq!(reading.meter, MeterId(4));
            (reading.energy.0 > 0).then_some((reading.after, reading.until, reading.energy))
        }
        News::Node(reading) => {
            seen.push((reading.device.to_string(), reading.power));
            None
        }
        _ => None,
    });
    assert!(after <= until);
    // One interval of 250 ms at 200 W, as long as it really was.
    assert!((40.0..400.0).contains(&energy.joules().0), "{energy:?}");
    assert_eq!(
        seen,
        [
            ("acpi-0".to_owned(), Some(Watts(700.0))),
            ("aem-0".to_owned(), None)
        ]
    );
    tree.write("hwmon2/energy1_input", "901000000\n");
    let joules = wait(&news, |news| match news {
        News::Node(reading) if &*reading.device == "aem-0" => Some(reading.energy.joules().0),
        _ => None,
    });
    assert_eq!(joules, 900.0);
    tree.write("hwmon0/device/power1_average", "0\n");
    let error = wait(&news, |news| match news {
        News::State(state) => state.error,
        _ => None,
    });
    assert!(error.contains("power1_average: it shows 0 W"), "{error}");
    assert!(running.stop().is_empty());
}
