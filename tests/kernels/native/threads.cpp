// Every CPU operator called from several threads at once, on one index and one pool of threads, while another thread
// changes the instruction set. Compiled with ThreadSanitizer, which aborts at a race (tests/kernels/test_threads.py).
//
// Says whose results differ from those of one thread and exits with 1 if some do.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "operators.h"
#include "parallel.h"
#include "random.h"
#include "random_index.h"
#include "silvertriton/instruction_set.h"

namespace silvertriton {
namespace {

// Threads that are shared by all callers, as torch's are: each has what other requests of other callers left behind.
class Pool {
  public:
    explicit Pool(int64_t threads) {
        for (int64_t thread = 0; thread < threads; ++thread) threads_.emplace_back([this] { work(); });
    }
    ~Pool() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            ended_ = true;
        }
        changed_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

    int64_t size() const { return static_cast<int64_t>(threads_.size()) + 1; }  // the caller works too

    void run(const std::vector<std::function<void()>>& tasks) {
        std::atomic<size_t> left{tasks.size() - 1};
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            for (size_t i = 1; i < tasks.size(); ++i)
                waiting_.push_back([&, i] {
                    tasks[i]();
                    left.fetch_sub(1);
                });
        }
        changed_.notify_all();
        tasks[0]();
        while (left.load() > 0) std::this_thread::yield();
    }

  private:
    void work() {
        for (;;) {
            std::function<void()> task;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                changed_.wait(lock, [this] { return ended_ || !waiting_.empty(); });
                if (waiting_.empty()) return;
                task = std::move(waiting_.front());
                waiting_.pop_front();
            }
            task();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::function<void()>> waiting_;
    bool ended_ = false;
    std::vector<std::thread> threads_;
};

Pool* pool = nullptr;  // null: serial

}  // namespace

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
    const int64_t step = std::max(grain, (count + thread_count() - 1) / thread_count());
    std::vector<std::function<void()>> tasks;
    for (int64_t begin = 0; begin < count; begin += step)
        tasks.emplace_back([&, begin] { body(begin, std::min(begin + step, count)); });
    if (pool != nullptr && tasks.size() > 1) return pool->run(tasks);
    for (const auto& task : tasks) task();
}

int64_t thread_count() {
    return pool == nullptr ? 1 : pool->size();
}

namespace {

template <typename T>
std::vector<unsigned char> bytes_of(const std::vector<T>& values) {
    std::vector<unsigned char> bytes(values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
}

// What operators give, as bytes.
using Answer = std::vector<std::vector<unsigned char>>;

// The requests of one caller, and the shared index.
class Caller {
  public:
    Caller(uint64_t seed, const RandomIndex& index, int64_t batch)
        : random_{seed}, batch_(batch), index_(index), requests_(random_, index, std::max<int64_t>(batch, 8)) {
        if (batch == 1) limits_.exact_rows = index.rows();  // all of it, dealt out to the threads
        const SearchIndex& view = index.view();
        const ItemIds& items = view.filters.item_ids;
        fill(neighbours_, items.items * kNeighbours,
             [&] { return static_cast<int32_t>(random_.below(index.rows() + 1) - 1); });
        fill(weights_, items.items * kNeighbours, [&] { return random_.unit() + 1.0f; });
        fill(history_, batch * kHistory, [&] { return random_.below(3 * index.rows() + 1); });
        fill(layers_, (view.vectors.dims + 200) * kWidth, [&] { return 0.1f * random_.unit(); });
        fill(kept_, index.rows() * kHidden, [&] { return half_of(random_.unit()); });
        for (int64_t row = 0; row < index.rows(); ++row) {
            group_offsets_.push_back(2 * row);
            groups_.insert(groups_.end(), {static_cast<int32_t>(row % 5), 5 + static_cast<int32_t>(row % 7)});
            inverse_lengths_.push_back(0.01f);
        }
        group_offsets_.push_back(2 * index.rows());
    }

    // All operators, each on what the one before found.
    Answer run() {
        const SearchIndex& view = index_.view();
        const ItemIds& items = view.filters.item_ids;
        const SearchRequests requests = requests_.last(batch_);
        const int64_t width = RandomRequests::kMost, cells = batch_ * width;
        SearchRoom found(batch_, width);
        cpu::search(requests, view, limits_, found.view());
        Answer answer{bytes_of(found.rows), bytes_of(found.ids), bytes_of(found.scores), bytes_of(found.stats),
                      bytes_of(found.status)};

        std::vector<std::vector<int32_t>> lists(static_cast<size_t>(batch_));
        std::vector<uint32_t> words(static_cast<size_t>(batch_ * view.items.blocks));
        std::vector<cpu::FilterRequest> filters;
        for (int64_t b = 0; b < batch_; ++b)
            filters.push_back({requests.program + b * requests.program_width, words.data() + b * view.items.blocks,
                               &lists[static_cast<size_t>(b)], false, 0, kStatusOk});
        cpu::filter_rows("threads", filters.data(), batch_, requests.program_width, requests.fingerprint, view.filters);
        for (const cpu::FilterRequest& filter : filters)
            if (filter.listed) cpu::list_to_mask(*filter.rows, view.items.blocks, filter.words);
        answer.push_back(bytes_of(words));

        std::vector<float> scores(static_cast<size_t>(cells)), sums(scores), maxima(scores), values(scores);
        cpu::rescore(requests.query, view.vectors, found.rows.data(), batch_, width, scores.data());
        const Neighbours graph{neighbours_.data(), weights_.data(), kNeighbours};
        cpu::neighbour_scores(history_.data(), kHistory, found.rows.data(), batch_, width, items, graph, 6, sums.data(),
                              maxima.data());
        cpu::rerank({requests.query, history_.data(), found.rows.data(), found.scores.data(), batch_, width,
                     view.vectors.dims, kHistory},
                    {view.vectors, kept_.data(), items, graph, 6}, layers(view.vectors.dims), values.data());
        std::vector<int64_t> keys, places(history_.size());
        for (int64_t item = 0; item < items.items; ++item) keys.push_back(items.ids[items.item_rows[item]]);
        cpu::lookup(keys.data(), items.items, history_.data(), static_cast<int64_t>(history_.size()), places.data());
        std::vector<float> asked(static_cast<size_t>(batch_), 0.5f), resolved(asked);
        const float otherwise = 1.0f;
        cpu::resolve_weights(asked.data(), &otherwise, batch_, 1, resolved.data(), found.status.data());
        for (const auto* part : {&scores, &sums, &maxima, &values, &resolved}) answer.push_back(bytes_of(*part));
        answer.push_back(bytes_of(places));

        const Scored scored{values.data(), found.ids.data(), scores.data(), found.status.data(), batch_, width, 1,
                            kBest};
        const RowVectors units{view.vectors.vectors, inverse_lengths_.data(), view.vectors.rows, view.vectors.dims};
        const std::vector<int32_t> most(12, 3);
        const Groups groups{group_offsets_.data(), groups_.data(), most.data(), static_cast<int64_t>(groups_.size()),
                            static_cast<int64_t>(most.size())};
        for (const bool diverse : {false, true}) {
            std::vector<int64_t> ids(static_cast<size_t>(batch_ * kBest));
            std::vector<float> best(ids.size()), tasks(ids.size());
            std::vector<int32_t> count(static_cast<size_t>(batch_));
            const SelectResults results{ids.data(), best.data(), tasks.data(), count.data()};
            if (diverse) {
                cpu::select_diverse(scored, found.rows.data(), units, groups, {0.6f, 0.4f}, results);
            } else {
                cpu::select(scored, results);
            }
            answer.insert(answer.end(), {bytes_of(ids), bytes_of(best), bytes_of(tasks), bytes_of(count)});
        }
        return answer;
    }

  private:
    static constexpr int64_t kNeighbours = 5, kHistory = 7, kHidden = 40, kWidth = 48, kBest = 20;

    template <typename T, typename Make>
    static void fill(std::vector<T>& values, int64_t count, Make make) {
        for (int64_t i = 0; i < count; ++i) values.push_back(make());
    }

    // 40 hidden units, 16 of the second layer, one task.
    RerankLayers layers(int64_t dims) const {
        const float* user = layers_.data();
        const float* first = user + (dims + 2) * kWidth;
        return {user, first, layers_.data(), layers_.data() + 64, dims, kHidden, 16, 1, kWidth, 16, 16};
    }

    Random random_;
    const int64_t batch_;
    SearchLimits limits_ = RandomRequests::kLimits;
    const RandomIndex& index_;
    RandomRequests requests_;
    std::vector<int32_t> neighbours_, groups_;
    std::vector<float> weights_, layers_, inverse_lengths_;
    std::vector<int64_t> history_, group_offsets_;
    std::vector<uint16_t> kept_;
};

std::vector<std::string> known_sets() {
    std::vector<std::string> found;
    for (const char* name : {"portable", "avx2", "avx512vnni", "neon", "neon-dotprod"}) try {
            force_instruction_set(name);
            found.emplace_back(name);
        } catch (const std::runtime_error&) {
        }
    return found;
}

int run(int64_t rounds) {
    const std::vector<std::string> sets = known_sets();
    Random random{7};
    for (const int64_t clusters : {0, 3, 600}) {
        const RandomIndex index(random, 24, 24, clusters, 1.0f, clusters == 3);
        std::vector<Caller> callers;
        std::vector<Answer> expected;
        for (const int64_t batch : {1, 2, 40, 9}) callers.emplace_back(random.word(), index, batch);
        for (Caller& caller : callers) expected.push_back(caller.run());
        Pool shared(3);
        pool = &shared;
        std::atomic<bool> differs{false};
        std::atomic<size_t> left{callers.size()};
        std::vector<std::thread> threads;
        for (size_t c = 0; c < callers.size(); ++c)
            threads.emplace_back([&, c] {
                for (int64_t round = 0; round < rounds; ++round)
                    if (callers[c].run() != expected[c]) differs = true;
                left.fetch_sub(1);
            });
        for (size_t i = 0; left.load() > 0; ++i) {
            force_instruction_set(sets[i % sets.size()].c_str());
            std::this_thread::yield();
        }
        for (std::thread& thread : threads) thread.join();
        pool = nullptr;
        if (differs) {
            std::printf("%lld clusters: results of several threads are not those of one\n",
                        static_cast<long long>(clusters));
            return 1;
        }
    }
    return 0;
}

}  // namespace
}  // namespace silvertriton

int main(int, char** arguments) {
    return silvertriton::run(std::atoll(arguments[1]));
}
