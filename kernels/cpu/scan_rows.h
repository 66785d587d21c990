// scan_rows of an instruction set, from the sum of one row. Included where these are defined, once for each set:
//   ST_TARGET      the attribute of functions that hold its instructions
//   ST_SCAN_ROWS   the name of the function
//   ST_ROW_SUM     int32_t (const int32_t* row, int64_t width, const QueryCodes& query): the sum of a row's products,
//                  of all `width` words: the query is 0 where a row has its scale, and behind it.

ST_TARGET int64_t ST_SCAN_ROWS(const int32_t* codes, const int32_t* rows, int64_t count, const QueryCodes& query,
                               float floor, uint64_t* hits) {
    constexpr int64_t kAhead = 16;
    const int64_t groups = query.group_count, width = RowCodes::width(4 * groups);
    for (int64_t i = 0; i < kAhead && i < count; ++i) cpu::ask_for_row(codes + rows[i] * width, width);
    int64_t written = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (i + kAhead < count) cpu::ask_for_row(codes + rows[i + kAhead] * width, width);
        const int32_t* row = codes + rows[i] * width;
        float scale;
        std::memcpy(&scale, row + groups, sizeof scale);
        const float score = static_cast<float>(ST_ROW_SUM(row, width, query)) * scale;
        if (score >= floor) hits[written++] = packed_hit(score, rows[i]);
    }
    return written;
}

#undef ST_ROW_SUM
#undef ST_SCAN_ROWS
