-- pandoc filter: the cells of executed notebooks become the chapters of a report, for HTML and Typst.
-- Python (report.py) marks a notebook's first cell with the attribute `chapter` (its file stem).

local in_pdf = FORMAT:match("typst") ~= nil
local text_of = pandoc.utils.stringify
local code_width = 100 -- characters that fit across A4 in the small type of the code

local function typst(code) return pandoc.RawBlock("typst", code) end

local function is_address(source) return source:match("^%a[%w+.-]*:") ~= nil end

-- 1. Raw pieces: HTML outputs, display(Markdown(...)), LaTeX ------------------------------------

-- A pandas Styler names cells by id and colours them in a <style>: carry that over to the cells.
local function styler_rules(html)
  local rules = {}
  for selectors, declarations in html:gmatch("([^{}<>]+){([^{}]*)}") do
    for id in selectors:gmatch("#([%w_]+)") do rules[id] = (rules[id] or "") .. declarations end
  end
  return rules
end

local function colour(declarations, property)
  return (";" .. declarations):gsub("%s", ""):match(";" .. property .. ":(#%x%x%x%x%x%x)")
end

local function style_cell(cell, declarations)
  if not in_pdf then
    cell.attributes.style = declarations:gsub("%s+", " ")
    return
  end
  local fill, ink = colour(declarations, "background%-color"), colour(declarations, "color")
  if fill then cell.attributes["typst:fill"] = 'rgb("' .. fill .. '")' end
  cell.contents = cell.contents:walk {
    Plain = function(plain)
      local inlines = plain.content
      if declarations:match("font%-weight:%s*bold") then inlines = { pandoc.Strong(inlines) } end
      if ink then
        inlines = pandoc.Inlines(inlines)
        inlines:insert(1, pandoc.RawInline("typst", '#text(fill: rgb("' .. ink .. '"))['))
        inlines:insert(pandoc.RawInline("typst", "]"))
      end
      return pandoc.Plain(inlines)
    end,
  }
end

local function rows_of(el)
  local head, body = pandoc.List(el.head.rows), pandoc.List()
  for _, part in ipairs(el.bodies) do
    body:extend(part.head)
    body:extend(part.body)
  end
  return head, body
end

local function read_html(html)
  local rules = styler_rules(html)
  return pandoc.read((html:gsub("<style.->.-</style>", "")), "html").blocks:walk {
    Table = function(el)
      local head, body = rows_of(el)
      for _, row in ipairs(head .. body) do
        for _, cell in ipairs(row.cells) do
          local rule = rules[cell.identifier]
          cell.attr = pandoc.Attr() -- pandas' ids and classes: noise
          if rule then style_cell(cell, rule) end
        end
      end
      el.attr = pandoc.Attr("", { "dataframe" })
      return el
    end,
    Div = function(el) return el.content end, -- pandas wraps its tables
  }
end

local raw = {
  RawBlock = function(el)
    if el.format == "markdown" then
      return pandoc.read(el.text .. "\n", "gfm+tex_math_dollars").blocks
    elseif el.format == "html" then
      return read_html(el.text)
    elseif el.format == "latex" or el.format == "tex" then
      return pandoc.read(el.text .. "\n", "latex").blocks
    end
  end,
  RawInline = function(el)
    if el.format == "tex" or el.format == "latex" then
      local formula = el.text:match("^\\begin{") -- Jupyter shows a bare environment as a formula
      return formula and pandoc.Math("DisplayMath", el.text) or pandoc.Str(el.text)
    elseif el.format == "html" and el.text:match("^<img") then
      return pandoc.utils.blocks_to_inlines(pandoc.read(el.text, "html").blocks)
    elseif el.format == "html" and el.text:match("^<script") then
      return {}
    end
  end,
}

-- 2. Elements: formulas, images, tables, code ---------------------------------------------------

local function is_number(text)
  return text:match("^[%d%s.,+%%eE()%[%]×±−–—-]*$")
    or text:match("^[+-]?nan$")
    or text:match("^[+-]?inf$")
end

-- Numbers stand to the right. Columns are counted from the right, for pandas leaves out the index
-- cells that a cell above spans.
local function align_numbers(el)
  local head, body = rows_of(el)
  local columns, holds_text, holds_digit = #el.colspecs, {}, {}
  local function each(rows, visit)
    for _, row in ipairs(rows) do
      local column = columns + 1
      for i = #row.cells, 1, -1 do
        column = column - row.cells[i].col_span
        visit(row.cells[i], column)
      end
    end
  end
  each(body, function(cell, column)
    local text = text_of(cell.contents)
    if not is_number(text) then holds_text[column] = true end
    if text:match("%d") then holds_digit[column] = true end
  end)
  for i, spec in ipairs(el.colspecs) do
    if spec[1] == pandoc.AlignDefault then
      local right = holds_digit[i] and not holds_text[i]
      el.colspecs[i] = { right and pandoc.AlignRight or pandoc.AlignLeft, spec[2] }
    end
  end
  each(head, function(cell)
    if cell.col_span > 1 then cell.alignment = pandoc.AlignCenter end
  end)
  return el
end

-- No line runs off the page: a longer one goes on in the next, after a blank or comma if one is near.
local function wrapped(text)
  return (text:gsub("[^\n]+", function(line)
    local lines = {}
    while utf8.len(line) and utf8.len(line) > code_width do
      local piece = line:sub(1, utf8.offset(line, code_width + 1) - 1)
      local stop = piece:match(".*[%s,;]()") or 0
      if stop > 0.7 * code_width then piece = piece:sub(1, stop - 1) end
      table.insert(lines, piece)
      line = line:sub(#piece + 1)
    end
    table.insert(lines, line)
    return table.concat(lines, "\n")
  end))
end

-- On paper, paths and long names may break; in a wide table, long names of columns do.
local function with_breaks(el)
  for _, row in ipairs(#el.colspecs > 8 and el.head.rows or {}) do
    for _, cell in ipairs(row.cells) do
      cell.contents = cell.contents:walk {
        Str = function(str)
          local first, rest = str.text:match("^(.....-_)(.+)$")
          return first and { pandoc.Str(first), pandoc.LineBreak(), pandoc.Str(rest) }
        end,
      }
    end
  end
  return el:walk {
    Str = function(str) return pandoc.Str((str.text:gsub("[/_]", "%0\u{200b}"))) end,
  }
end

local elements = {
  Math = function(el)
    if in_pdf then
      el.text = el.text:gsub("\\!", "") -- the Typst writer makes a leap of it
      return el
    end
  end,
  Image = function(el)
    if is_address(el.src) and not el.src:match("^data:") and not el.src:match("^attachment:") then
      return el.caption -- a report needs no network
    end
    if not pcall(pandoc.mediabag.fetch, el.src) then
      if not in_pdf then -- say it once
        io.stderr:write("report: image " .. el.src .. " is missing; its description takes its place\n")
      end
      return el.caption
    end
  end,
  Table = function(el)
    if in_pdf then el = with_breaks(el) end
    return align_numbers(el)
  end,
  CodeBlock = function(el)
    if in_pdf then el.text = wrapped(el.text) end
    return el
  end,
}

-- 3. The report: chapters, captions, links ------------------------------------------------------

local function slug(text)
  local plain = text:lower():gsub("[^%w%s_\128-\255-]", "")
  return (plain:gsub("%s+", "-"))
end

local function framed(kind, block)
  if not in_pdf then return pandoc.Blocks { pandoc.Div(block, pandoc.Attr("", { kind })) } end
  return pandoc.Blocks { typst("#" .. kind .. "["), block, typst("]") }
end

-- Cells and outputs, one after another: code and text outputs framed, all else as it is.
local function laid_out(cell)
  if not cell.classes:includes("code") then return cell.content end
  local blocks = pandoc.Blocks {}
  for i, block in ipairs(cell.content) do
    if block.t == "CodeBlock" and i == 1 then
      if block.text:match("%S") then blocks:extend(framed("source", block)) end
    elseif block.t == "Div" and block.classes:includes("output") then
      for _, inner in ipairs(block.content) do
        if inner.t == "CodeBlock" then
          inner.classes = {}
          blocks:extend(framed("textout", inner))
        else
          blocks:insert(inner)
        end
      end
    else
      blocks:insert(block)
    end
  end
  return blocks
end

local function lone_image(block)
  if (block.t == "Para" or block.t == "Plain") and #block.content == 1 then
    local only = block.content[1]
    return only.t == "Image" and only or nil
  end
end

local function is_caption(block)
  local first = block.t == "Para" and block.content[1]
  return first and first.t == "Strong" and text_of(first):match("^%a+%s[%w.]*%d")
    and (text_of(first):match("^Figure") or text_of(first):match("^Table")) ~= nil
end

local function shown(block, caption)
  local kind = block.t == "Table" and "table" or "image"
  if in_pdf then
    local parts = pandoc.Blocks { typst("#shown-" .. kind .. "["), block, typst("][") }
    if caption then parts:insert(pandoc.Plain(caption)) end
    parts:insert(typst("]"))
    return parts
  end
  local image = lone_image(block)
  if image and caption then image.caption = { pandoc.Str(text_of(caption)) } end
  local body = image and pandoc.Plain { image } or pandoc.Div(block, pandoc.Attr("", { "scroll" }))
  if not caption then return pandoc.Blocks { pandoc.Div(body, pandoc.Attr("", { kind })) } end
  local long = { long = { pandoc.Plain(caption) } }
  return pandoc.Blocks { pandoc.Figure(body, long, pandoc.Attr("", { kind })) }
end

-- A paragraph `**Figure 2.1.** …` or `**Table 2.1.** …` belongs to the image or table before it.
local function with_captions(blocks)
  local result, skip = pandoc.Blocks {}, false
  for i, block in ipairs(blocks) do
    local following = blocks[i + 1]
    if skip then
      skip = false
    elseif block.t == "Table" or lone_image(block) then
      skip = following ~= nil and is_caption(following)
      result:extend(shown(block, skip and following.content or nil))
    elseif is_caption(block) then
      result:extend(framed("caption", block))
    else
      result:insert(block)
    end
  end
  return result
end

-- A single Markdown cell: links to other notebooks lead to the HTML files beside it.
local function fragment(doc)
  doc.blocks = doc.blocks[1].content
  return doc:walk {
    Header = function(el)
      el.identifier = slug(text_of(el))
      return el
    end,
    Link = function(el)
      if not is_address(el.target) then
        el.target = el.target:gsub("%.ipynb", ".html"):gsub("#(.*)$", function(id) return "#" .. slug(id) end)
      end
      return el
    end,
  }
end

-- Ids are `<notebook>` and `<notebook>-<heading>`, so that headings may repeat from notebook to
-- notebook; links are brought to that form, and those that lead nowhere become plain text.
local function assemble(doc)
  if text_of(doc.meta.pagetitle or "") == "fragment" then return fragment(doc) end
  local blocks, taken, chapter, titled = pandoc.Blocks {}, {}, "", false
  local function unique(id)
    local free, n = id, 1
    while taken[free] do
      n = n + 1
      free = id .. "-" .. n
    end
    taken[free] = true
    return free
  end
  for _, cell in ipairs(doc.blocks) do
    if cell.attributes.chapter then
      chapter, titled = slug(cell.attributes.chapter), false
    end
    blocks:extend(laid_out(cell):walk {
      Header = function(el)
        local opens = el.level == 1 and not titled
        titled = titled or opens
        if el.level == 1 and not opens then el.level = 2 end
        el.attr = pandoc.Attr(unique(opens and chapter or chapter .. "-" .. slug(text_of(el))))
        return el
      end,
      Link = function(el)
        local notebook, place = el.target:match("^([^#?]*)%.ipynb#?(.*)$")
        if is_address(el.target) then
          return nil
        elseif notebook then
          notebook = slug(notebook:gsub("^.*/", ""))
          el.target = "#" .. notebook .. (place ~= "" and "-" .. slug(place) or "")
          el.attributes.otherwise = "#" .. notebook
        elseif el.target:match("^#") then
          el.target = "#" .. chapter .. "-" .. slug(el.target:sub(2))
        end
        return el
      end,
    })
  end
  doc.blocks = with_captions(blocks):walk {
    Link = function(el)
      local otherwise = el.attributes.otherwise
      el.attributes.otherwise = nil
      for _, target in ipairs { el.target, otherwise } do
        if is_address(target) or taken[target:sub(2)] then
          el.target = target
          return el
        end
      end
      return el.content
    end,
  }
  return doc
end

return { raw, elements, { Pandoc = assemble } }
