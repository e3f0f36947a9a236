#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "base/timer.hpp"

using namespace icepath;

namespace {
struct rec : timer {
  std::function<void(rec&, nsec)> hook;
  std::vector<nsec> fired;
  rec() {
    fn = [](timer* t, nsec now) {
      auto* r = static_cast<rec*>(t);
      r->fired.push_back(now);
      EXPECT_FALSE(r->armed());
      if (r->hook) r->hook(*r, now);
    };
  }
};
}  // namespace

TEST(timer_wheel, fires_at_the_deadline_and_not_a_nanosecond_before) {
  for (nsec d : {nsec{1}, nsec{65535}, nsec{65536}, nsec{65537}, 5 * msec_ns + 3, 40 * msec_ns, sec_ns + 7, 7200 * sec_ns + 1, nsec{1} << 50}) {
    for (nsec start : {nsec{0}, nsec{12345}, 3600 * sec_ns + 77, (nsec{1} << 57) + 99}) {
      timer_wheel w(start);
      rec t;
      w.arm(t, start + d);
      EXPECT_EQ(w.next_expiry(), start + d);
      EXPECT_EQ(w.run(start + d - 1), 0u);
      EXPECT_TRUE(t.armed());
      EXPECT_EQ(w.run(start + d), 1u);
      EXPECT_EQ(w.armed(), 0u);
      EXPECT_EQ(w.next_expiry(), ~nsec{0});
    }
  }
}

TEST(timer_wheel, deadlines_beyond_the_reach_fire_too) {
  timer_wheel w(0);
  rec t, u;
  const nsec far = (nsec{1} << 58) * 5 + 12345;
  w.arm(t, far);
  w.arm(u, ~nsec{0} - 1);
  for (nsec now = 0; now < far; now += far / 50) {
    w.run(now);
    EXPECT_TRUE(t.fired.empty());
  }
  EXPECT_EQ(w.run(far - 1), 0u);
  EXPECT_EQ(w.run(far), 1u);
  EXPECT_TRUE(u.armed());
  w.cancel(u);
}

TEST(timer_wheel, past_deadline_fires_on_the_next_run) {
  timer_wheel w(10 * sec_ns);
  rec t;
  w.arm(t, 3);
  EXPECT_LE(w.next_expiry(), 10 * sec_ns);
  EXPECT_EQ(w.run(10 * sec_ns), 1u);
}

TEST(timer_wheel, rearm_moves_in_both_directions) {
  timer_wheel w(0);
  rec t;
  w.arm(t, sec_ns);
  w.arm(t, 5 * sec_ns);
  EXPECT_EQ(w.armed(), 1u);
  EXPECT_EQ(w.next_expiry(), 5 * sec_ns);
  EXPECT_EQ(w.run(2 * sec_ns), 0u);
  w.arm(t, 3 * sec_ns);
  EXPECT_EQ(w.run(3 * sec_ns), 1u);
  EXPECT_EQ(w.run(9 * sec_ns), 0u);
}

TEST(timer_wheel, rearm_inside_its_own_callback_never_runs_twice_in_one_run) {
  timer_wheel w(0);
  rec t;
  t.hook = [&](rec& r, nsec) { w.arm(r, 1); };  // for ever in the past
  w.arm(t, 1000);
  EXPECT_EQ(w.run(sec_ns), 1u);
  EXPECT_EQ(w.run(sec_ns), 1u);
  EXPECT_EQ(w.run(sec_ns), 1u);
  w.cancel(t);
  EXPECT_EQ(w.run(2 * sec_ns), 0u);
}

TEST(timer_wheel, callback_may_cancel_or_move_one_that_is_due_in_the_same_run) {
  timer_wheel w(0);
  rec a, b, c;
  a.hook = [&](rec&, nsec now) {
    w.cancel(b);
    w.arm(c, now + sec_ns);
  };
  w.arm(a, 100);
  w.arm(b, 101);
  w.arm(c, 102);
  EXPECT_EQ(w.run(sec_ns), 1u);
  EXPECT_TRUE(b.fired.empty());
  EXPECT_TRUE(c.armed());
  EXPECT_EQ(w.next_expiry(), 2 * sec_ns);
  EXPECT_EQ(w.run(2 * sec_ns), 1u);
  EXPECT_EQ(w.armed(), 0u);
}

TEST(timer_wheel, callback_may_destroy_its_timer) {
  timer_wheel w(0);
  auto* t = new rec;
  t->fn = [](timer* x, nsec) { delete static_cast<rec*>(x); };
  w.arm(*t, 5);
  EXPECT_EQ(w.run(5), 1u);
}

TEST(timer_wheel, cancelled_timer_does_not_keep_the_sleeper_awake) {
  timer_wheel w(0);
  rec a, b;
  w.arm(a, msec_ns);
  w.arm(b, 500 * sec_ns);
  w.cancel(a);
  EXPECT_EQ(w.next_expiry(), 500 * sec_ns);
}

TEST(timer_wheel, sleeping_until_next_expiry_always_makes_progress) {
  std::mt19937_64 rng(7);
  timer_wheel w(0);
  std::vector<rec> t(3000);
  for (auto& x : t) w.arm(x, rng() % (100 * sec_ns));
  nsec now = 0;
  unsigned wakes = 0;
  while (w.armed()) {
    const nsec n = w.next_expiry();
    ASSERT_TRUE(n > now || w.run(now) > 0);
    if (n > now) now = n;
    w.run(now);
    ++wakes;
  }
  EXPECT_LT(wakes, 3000u + 3000u / 8);
}

TEST(timer_wheel, agrees_with_a_multimap) {
  for (unsigned seed = 0; seed < 30; ++seed) {
    std::mt19937_64 rng(seed);
    const nsec start = rng() >> (rng() % 40 + 6);
    timer_wheel w(start);
    std::vector<rec> t(200);
    std::multimap<nsec, rec*> model;
    const auto forget = [&](rec* r) {
      for (auto i = model.begin(); i != model.end(); ++i)
        if (i->second == r) return void(model.erase(i));
    };
    nsec now = start;
    std::set<rec*> fired;
    for (auto& x : t) x.hook = [&](rec& r, nsec) {
      EXPECT_TRUE(fired.insert(&r).second);
      if (rng() % 8 == 0) {
        const nsec e = now + (rng() >> (rng() % 50 + 14));
        w.arm(r, e);
        model.emplace(e, &r);
      }
    };
    for (int step = 0; step < 3000; ++step) {
      rec& r = t[rng() % t.size()];
      switch (rng() % 5) {
        case 0: case 1: case 2: {
          const nsec span = rng() >> (rng() % 50 + 14), e = rng() % 16 ? now + span : (now > span ? now - span : 0);
          forget(&r);
          w.arm(r, e);
          model.emplace(e, &r);
          break;
        }
        case 3:
          forget(&r);
          w.cancel(r);
          break;
        default: {
          if (!model.empty()) {
            ASSERT_LE(w.next_expiry(), model.begin()->first);
          } else {
            ASSERT_EQ(w.next_expiry(), ~nsec{0});
          }
          now = rng() % 3 ? now + (rng() >> (rng() % 44 + 20)) : std::max(now, w.next_expiry() == ~nsec{0} ? now : w.next_expiry());
          std::set<rec*> due;
          while (!model.empty() && model.begin()->first <= now) {
            due.insert(model.begin()->second);
            model.erase(model.begin());
          }
          fired.clear();
          ASSERT_EQ(w.run(now), due.size()) << "seed " << seed << " step " << step;
          ASSERT_EQ(fired, due);
        }
      }
      ASSERT_EQ(w.armed(), model.size());
    }
    for (auto& x : t) w.cancel(x);
  }
}
